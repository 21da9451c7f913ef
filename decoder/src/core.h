/* What every file here uses: memory that is freed at once, bytes with their length, integers in bytes. */

#ifndef GBNN_CORE_H
#define GBNN_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../gbnn.h"

/* Weights must have the same bits on every machine. */
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__)
#error "compile without -ffast-math and all its parts"
#elif defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0 && __FLT_EVAL_METHOD__ != 16
#error "float and double must not be computed with more bits: on 32-bit x86, compile with -msse2 -mfpmath=sse"
#elif !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "only little-endian machines are supported, and only gcc and clang"
#elif defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__FP_FAST_FMA) && !defined(__STRICT_ANSI__)
#error "gcc would fuse multiplications and additions: compile with -std=c99"
#endif

#define TRY(call)                                                                                                     \
    do {                                                                                                               \
        gbnn_code code_ = (call);                                                                                      \
        if (code_ != GBNN_OK) return code_;                                                                            \
    } while (0)

/* Memory of one owner. All of it is freed at once, so that errors need no clean-up of their own. */
typedef struct arena_block arena_block;
typedef struct {
    arena_block *last;
} arena;

/* Zeroed memory for count things of size bytes, or NULL if there is none. */
void *arena_take(arena *memory, uint64_t count, size_t size);

/* The same, but not zeroed: for large tables that are written before they are read. */
void *arena_take_room(arena *memory, uint64_t count, size_t size);

void arena_free(arena *memory);

typedef struct {
    const unsigned char *data;
    size_t size;
} span;

static inline span span_of(const void *data, size_t size) {
    span result = {(const unsigned char *)data, size};
    return result;
}

/* Takes size bytes from the front; the span must hold as many. */
static inline span span_take(span *from, size_t size) {
    span result = {from->data, size};
    from->data += size;
    from->size -= size;
    return result;
}

/* Reads a length, 7 bits per byte, the lowest first; false if it is cut short or has more than nine bytes. */
static inline bool span_length(span *from, uint64_t *length) {
    *length = 0;
    for (unsigned shift = 0; shift < 63; shift += 7) {
        if (from->size == 0) return false;
        unsigned char byte = *span_take(from, 1).data;
        *length |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) return true;
    }
    return false;
}

static inline uint16_t load16(const unsigned char *from) { return (uint16_t)(from[0] | from[1] << 8); }

static inline uint32_t load32(const unsigned char *from) {
    return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

static inline uint64_t load64(const unsigned char *from) { return load32(from) | (uint64_t)load32(from + 4) << 32; }

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

#endif
