"""Votes of people: what is stored, what is shown next, who is believed, and how votes become pairs."""
