"""The former name of `models.decoding.keys`, until the canvas decoders have moved."""

from models.decoding.keys import *  # noqa: F403
from models.decoding.keys import ACCEPT, PLACE, REMASK, RESIDUAL, REVEAL, START, STOP, TOKEN  # noqa: F401
