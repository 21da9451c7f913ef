/* Memory that is freed at once: small pieces share blocks, large ones have a block each. */

#include <stdlib.h>

#include "core.h"

#define ALIGNMENT 16
#define SHARED_BYTES ((size_t)1 << 14)

struct arena_block {
    arena_block *before;
    size_t used, room;
};

static size_t header_bytes(void) { return (sizeof(arena_block) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

static arena_block *new_block(size_t room, bool zeroed) {
    if (room > SIZE_MAX - header_bytes()) return NULL;
    arena_block *block = zeroed ? calloc(1, header_bytes() + room) : malloc(header_bytes() + room);
    if (block == NULL) return NULL;
    block->used = 0;
    block->room = room;
    return block;
}

static void *take(arena *memory, uint64_t count, size_t size, bool zeroed) {
    if (count > (SIZE_MAX / 2 - ALIGNMENT) / size) return NULL;
    size_t bytes = ((size_t)count * size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    arena_block *block = memory->last;
    if (block == NULL || block->room - block->used < bytes) {
        bool large = bytes > SHARED_BYTES / 4;
        block = new_block(large ? bytes : SHARED_BYTES, zeroed || !large);
        if (block == NULL) return NULL;
        if (large && memory->last != NULL) {
            /* Behind the block that small pieces still fit into. */
            block->before = memory->last->before;
            memory->last->before = block;
        } else {
            block->before = memory->last;
            memory->last = block;
        }
    }
    void *result = (unsigned char *)block + header_bytes() + block->used;
    block->used += bytes;
    return result;
}

void *arena_take(arena *memory, uint64_t count, size_t size) { return take(memory, count, size, true); }

void *arena_take_room(arena *memory, uint64_t count, size_t size) { return take(memory, count, size, false); }

void arena_free(arena *memory) {
    for (arena_block *block = memory->last; block != NULL;) {
        arena_block *before = block->before;
        free(block);
        block = before;
    }
    memory->last = NULL;
}
