"""Whatever is taken, kept and given back: every nonce below the next one is held once or free once."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from services.txbuilder.store import NonceSequence


class Allocation(RuleBasedStateMachine):
    """The account row and its free nonces as the store keeps them, moved by sequences as the store moves them."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.next_nonce = 0
        self.free: set[int] = set()
        self.holding: set[int] = set()

    @rule(target=held, count=st.integers(0, 5))
    def reserve(self, count: int) -> object:
        sequence = NonceSequence(sorted(self.free), self.next_nonce)
        taken = []
        for _ in range(count):
            expected = sequence.peek()
            taken.append(sequence.take())
            assert taken[-1] == expected
        self._commit(sequence)
        assert not self.holding & set(taken)
        assert taken == sorted(taken), "a nonce that was given back is reused first"
        self.holding |= set(taken)
        return multiple(*taken)

    @rule(count=st.integers(0, 5))
    def lose_a_reservation_before_its_commit(self, count: int) -> None:
        sequence = NonceSequence(sorted(self.free), self.next_nonce)
        for _ in range(count):
            sequence.take()

    @rule(nonce=consumes(held))
    def release(self, nonce: int) -> None:
        self.holding.remove(nonce)
        self.free.add(nonce)

    def _commit(self, sequence: NonceSequence) -> None:
        self.free -= set(sequence.taken_free)
        self.next_nonce = sequence.next_nonce

    @invariant()
    def every_nonce_is_held_or_free(self) -> None:
        assert not self.holding & self.free
        assert self.holding | self.free == set(range(self.next_nonce))


TestAllocation = Allocation.TestCase
