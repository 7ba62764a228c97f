import numpy as np

from zarrmask.storage.buffers import buffer


def test_a_buffer_is_the_same_memory_as_long_as_it_is_large_enough():
    first = buffer("test-same", (4, 6), np.uint16)
    assert np.shares_memory(first, buffer("test-same", (3, 5), np.uint8))
    assert not np.shares_memory(first, buffer("test-other", (4, 6), np.uint16))
    larger = buffer("test-same", (4, 7), np.uint16)
    assert larger.shape == (4, 7)
    assert not np.shares_memory(first, larger)


def test_with_room_set_aside_a_buffer_may_grow_where_it_is():
    first = buffer("test-room", (4, 6), np.uint16, room=(4, 8))
    assert first.shape == (4, 6)
    assert np.shares_memory(first, buffer("test-room", (4, 8), np.uint16, room=(4, 8)))
