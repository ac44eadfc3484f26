"""What the machine gives: whether all cores are there at the moment, and how fast they are.

Two cores of a virtual machine may be threads of one core of its host for a while, above all after
they were idle: two threads then take as long as one, whatever they run. A time counts only if a
product of matrices is as fast as it can be, just before it and just after.
"""

import time

import tensorflow as tf

SIZE = 1024  # of matrices: 10 ms on two cores, in which threads of other engines stop spinning
LARGE_SIZE = 3072  # of matrices whose product is as fast as any
AS_FAST = 0.85  # of the best product: what is slower lacks a core
TRIES = 6  # of a time
PATIENCE = 40  # seconds of a process, after which times count as they come
NUMBERS = 1 << 26  # which no cache holds

_best: dict = {}  # FLOP a second, by size of the matrices
_waited = [0.0]  # seconds


def timed(block, calls=1):
    """Returns the mean seconds of some calls of `block` that follow one more, with all cores."""
    for _ in range(TRIES):
        _wait()
        block()
        start = time.perf_counter()
        for _ in range(calls):
            block()
        seconds = (time.perf_counter() - start) / calls
        if _has_cores() or _waited[0] > PATIENCE:
            break
        _waited[0] += time.perf_counter() - start
    return seconds


def peaks():
    """Returns the most GFLOP/s of a product of matrices, and GB/s of a sum of large arrays."""
    for _ in range(10):
        _product(LARGE_SIZE)
    values = tf.ones([NUMBERS])
    total = tf.Variable(values)  # added to in place: two arrays are read and one is written
    seconds = min(timed(lambda: total.assign_add(values)) for _ in range(5))
    return {"GFLOP/s": max(_best.values()) / 1e9, "GB/s": 3 * 4 * NUMBERS / seconds / 1e9}


def _wait():
    _product(SIZE), _product(SIZE)  # the host puts cores apart that stay busy
    start = time.perf_counter()
    while not _has_cores() and _waited[0] < PATIENCE:
        _waited[0] += time.perf_counter() - start
        start = time.perf_counter()


def _has_cores():
    return _product(SIZE) >= AS_FAST * _best[SIZE]


def _product(size):
    """Returns the FLOP a second of a product of matrices, and keeps the best."""
    factor = tf.ones([size, size])
    start = time.perf_counter()
    tf.matmul(factor, factor)
    rate = 2 * size**3 / (time.perf_counter() - start)
    _best[size] = max(_best.get(size, 0), rate)
    return rate
