"""Wallets, accounts, and leaf keys wrapped for signers.

Callers: gateway (wallets, accounts), signer (transport keys, leaves). It must never sign, return a seed after the
ceremony, or hold a seed or a leaf key in this process: that is `ceremony`'s.
"""
