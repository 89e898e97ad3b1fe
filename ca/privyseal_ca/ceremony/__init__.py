"""The key ceremony: how a root, its intermediates and a home come to be, with the ledger as transcript."""
