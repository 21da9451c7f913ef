/* Ids of a tensor, decoded into the memory that its weights will take. */

#ifndef GBNN_IDS_H
#define GBNN_IDS_H

#include "tables.h"

/* Ids in C order, or the patterns of 2, 4 or 8 bytes that they stand for, in the byte order of the machine. */
typedef struct {
    unsigned char *bytes;
    unsigned width;
    const uint64_t *patterns; /* of each id; NULL where ids themselves are wanted */
} id_array;

/* Writes an id, or its pattern; width is that of the array, perhaps as a constant. */
static inline void put_id(id_array into, unsigned width, size_t place, uint32_t id) {
    uint64_t eight = into.patterns == NULL ? id : into.patterns[id];
    uint16_t two = (uint16_t)eight;
    uint32_t four = (uint32_t)eight;
    if (width == 2) memcpy(into.bytes + 2 * place, &two, 2);
    else if (width == 4) memcpy(into.bytes + 4 * place, &four, 4);
    else memcpy(into.bytes + 8 * place, &eight, 8);
}

static inline uint32_t get_id(const unsigned char *bytes, unsigned width, size_t place) {
    uint16_t narrow;
    uint32_t id;
    uint64_t wide;
    if (width == 2) {
        memcpy(&narrow, bytes + 2 * place, 2);
        return narrow;
    }
    if (width == 4) {
        memcpy(&id, bytes + 4 * place, 4);
        return id;
    }
    memcpy(&wide, bytes + 8 * place, 8);
    return (uint32_t)wide;
}

/* Runs a statement in which WIDTH is a constant, so that the loops in it are compiled for each width. */
#define FOR_WIDTH(width, statement)                                                                                   \
    do {                                                                                                               \
        if ((width) == 2) {                                                                                            \
            enum { WIDTH = 2 };                                                                                        \
            statement;                                                                                                 \
        } else if ((width) == 4) {                                                                                     \
            enum { WIDTH = 4 };                                                                                        \
            statement;                                                                                                 \
        } else {                                                                                                       \
            enum { WIDTH = 8 };                                                                                        \
            statement;                                                                                                 \
        }                                                                                                              \
    } while (0)

/* The stream of version 1, from which words are popped. */
typedef struct {
    uint64_t state;
    size_t left; /* words */
} stack_state;

/* The start of the stream; false if its last word is 0. */
bool stack_start(span words, stack_state *state);

/* Decodes the ids of a tensor with more than one symbol (docs/format.md, "ids, version 1"). */
gbnn_code stack_decode(span words, stack_state *state, const gbnn_tensor *tensor, const table *of, models *with,
                       arena *memory, id_array ids);

/* Decodes a stream of version 2, which must end with the ids. */
gbnn_code lanes_decode(span words, const gbnn_tensor *tensor, const table *of, models *with, arena *memory,
                       id_array ids);

#endif
