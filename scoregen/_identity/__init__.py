"""What a thing computes, as a number: tensors, settings, code and closures, never an address.

Two things with one `identity` give the same results, so a stored result may be served for both. The
converse does not hold: a comment moved or a counter increased may change an identity, and then a
result is computed again, which costs time and nothing else. A `recipe` leaves out what a training
changes, the weights, so that a training that goes on finds its own.
"""

from .installed import library
from .reader import IdentityError, identity, uncompiled, uncompiled_name
from .recipe import machinery, modules_within, recipe, structure

__all__ = [
    "IdentityError",
    "identity",
    "library",
    "machinery",
    "modules_within",
    "recipe",
    "structure",
    "uncompiled",
    "uncompiled_name",
]
