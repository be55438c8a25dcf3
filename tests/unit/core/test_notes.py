import json
from base64 import b64decode, b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.core.errors import Reason, WalletError
from services.core.merkle import EMPTY_ROOT
from services.core.notes import Checkpoint, NoteKey, open_note, sign_note

VECTORS = Path(__file__).parents[2] / "vectors"
EXAMPLE = json.loads((VECTORS / "c2sp" / "note.json").read_bytes())
EXAMPLE_NOTE = f"{EXAMPLE['text']}\n— PeterNeumann {EXAMPLE['signature']}\n"
PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = NoteKey("log.example/evidence", PRIVATE.public_key().public_bytes_raw())
OTHER = NoteKey("other.example", Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw())
CHECKPOINT = Checkpoint("log.example/evidence", 0, EMPTY_ROOT)


def signed(text=CHECKPOINT.text):
    return sign_note(text, KEY, PRIVATE.sign)


def test_the_published_note_verifies():
    key = NoteKey.from_vkey(EXAMPLE["vkey"])
    assert key.vkey == EXAMPLE["vkey"]
    assert open_note(EXAMPLE_NOTE, [key]) == EXAMPLE["text"]
    with pytest.raises(WalletError, match="verifies under the trusted key"):
        open_note(EXAMPLE_NOTE.replace("answer", "Answer"), [key])


def test_the_published_checkpoint_is_read():
    note = (VECTORS / "c2sp" / "checkpoint.txt").read_text()
    text = note.partition("\n\n")[0] + "\n"
    checkpoint = Checkpoint.from_text(text)
    assert (checkpoint.origin, checkpoint.tree_size) == ("example.com/behind-the-sofa", 20_852_163)
    assert checkpoint.text == text
    with pytest.raises(WalletError, match="at least one trusted key"):
        open_note(note, [KEY])


@pytest.mark.parametrize("folder", sorted((VECTORS / "bundles").glob("*/")), ids=lambda folder: folder.name)
def test_the_checkpoints_of_the_example_bundles_verify(folder):
    bundle = json.loads((folder / "bundle.json").read_bytes())
    trust = json.loads((folder / "trust.json").read_bytes())
    keys = [NoteKey.from_vkey(vkey) for vkey in trust["evidence_keys"]]
    checkpoint = Checkpoint.from_text(open_note(bundle["checkpoint"], keys))
    assert checkpoint.origin == keys[0].name
    assert checkpoint.tree_size > bundle["entries"][-1]["index"]


def test_a_signed_checkpoint_is_read_back():
    checkpoint = Checkpoint("log.example/evidence", 12, bytes(range(32)), ("extension 1", "— like a signature x"))
    note = signed(checkpoint.text)
    assert Checkpoint.from_text(open_note(note, [OTHER, KEY])) == checkpoint


def test_signatures_by_unknown_keys_are_ignored():
    bad = b64encode(OTHER.key_id + bytes(64)).decode()
    same_name_other_id = b64encode(bytes(4) + bytes(64)).decode()
    note = signed() + f"— {OTHER.name} {bad}\n— {KEY.name} {same_name_other_id}\n"
    assert open_note(note, [KEY]) == CHECKPOINT.text
    with pytest.raises(WalletError, match=r"other\.example"):
        open_note(note, [KEY, OTHER])
    with pytest.raises(WalletError, match="at least one trusted key"):
        open_note(note, [])


def test_a_good_signature_does_not_hide_a_bad_one_by_the_same_key():
    bad = b64encode(KEY.key_id + bytes(64)).decode()
    with pytest.raises(WalletError, match="verifies"):
        open_note(signed() + f"— {KEY.name} {bad}\n", [KEY])


def test_a_token_that_signs_wrongly_is_found_out():
    with pytest.raises(WalletError) as caught:
        sign_note(CHECKPOINT.text, KEY, lambda text: bytes(64))
    assert caught.value.reason is Reason.SIGNATURE_INVALID


SIGNATURE = signed().rpartition(" ")[2].strip()


@pytest.mark.parametrize(
    "note",
    [
        "",
        "text\n",
        "text\n\n",
        CHECKPOINT.text,
        signed()[:-1],
        signed().replace("\n\n", "\n"),
        signed().replace("— ", "- "),
        signed().replace("— ", "—"),
        signed() + "\n",
        signed() + "junk\n",
        signed() + f"—  {SIGNATURE}\n",
        signed().replace(SIGNATURE, SIGNATURE.rstrip("=")),
        signed().replace(SIGNATURE, "AAAA"),
        signed().replace(SIGNATURE, " " + SIGNATURE),
        signed().replace("\n", "\r\n"),
        "\t" + signed(),
        signed() + f"— a {SIGNATURE}\n" * 100,
    ],
)
def test_malformed_notes_are_refused(note):
    with pytest.raises(WalletError) as caught:
        open_note(note, [KEY])
    assert caught.value.reason is Reason.INVALID_REQUEST


ROOT = b64encode(EMPTY_ROOT).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        f"origin\n5\n{ROOT}",
        f"origin\n5\n{ROOT}\n\n",
        f"origin\n05\n{ROOT}\n",
        f"origin\n-5\n{ROOT}\n",
        f"origin\n٥\n{ROOT}\n",
        f"origin\n{2**64}\n{ROOT}\n",
        f"\n5\n{ROOT}\n",
        f"origin\n5\n{ROOT[:-1]}\n",
        f"origin\n5\n{ROOT[:-2]}V=\n",
        "origin\n5\nAAAA\n",
        "origin\n5\n",
    ],
)
def test_other_checkpoints_are_refused(text):
    with pytest.raises(WalletError, match="checkpoint"):
        Checkpoint.from_text(text)


@pytest.mark.parametrize("origin", ["", "a\nb", "a\tb"])
def test_a_checkpoint_with_a_bad_line_is_not_written(origin):
    with pytest.raises(WalletError, match="checkpoint"):
        _ = Checkpoint(origin, 1, EMPTY_ROOT).text


@pytest.mark.parametrize(
    "vkey",
    [
        "PeterNeumann",
        "PeterNeumann+c74f20a3",
        EXAMPLE["vkey"].replace("c74f20a3", "c74f20a4"),
        EXAMPLE["vkey"].replace("c74f20a3", "C74F20A3"),
        EXAMPLE["vkey"].replace("PeterNeumann", "Peter Neumann"),
        EXAMPLE["vkey"].replace("PeterNeumann", ""),
        EXAMPLE["vkey"][:-4],
        EXAMPLE["vkey"].replace("+AR", "+AB"),
        "PeterNeumann+c74f20a3+" + b64encode(b"\x02" + b64decode(EXAMPLE["vkey"].split("+", 2)[2])[1:]).decode(),
    ],
)
def test_other_vkeys_are_refused(vkey):
    with pytest.raises(WalletError):
        NoteKey.from_vkey(vkey)
