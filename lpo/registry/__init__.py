"""Promoted models: the ledger of decisions, and the gate that decides."""
