"""Processes that are killed, at any time, and started again until they are done."""

import random
import signal
import time

import pytest

from .runs import RUNS
