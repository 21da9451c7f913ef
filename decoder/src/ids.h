/* Ids of a tensor, decoded into the memory that its weights will take. */

#ifndef GBNN_IDS_H
#define GBNN_IDS_H

#include "tables.h"

/* Ids in C order, of 2, 4 or 8 bytes each in the byte order of the machine. */
typedef struct {
    unsigned char *bytes;
    unsigned width;
} id_array;

static inline void put_id(unsigned char *bytes, unsigned width, size_t place, uint32_t id) {
    uint16_t narrow = (uint16_t)id;
    uint64_t wide = id;
    if (width == 2) memcpy(bytes + 2 * place, &narrow, 2);
    else if (width == 4) memcpy(bytes + 4 * place, &id, 4);
    else memcpy(bytes + 8 * place, &wide, 8);
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
gbnn_code stack_decode(span words, stack_state *state, const gbnn_tensor *tensor, const table *of,
                       const bank *components, models *with, arena *memory, id_array ids);

/* Decodes a stream of version 2, which must end with the ids. */
gbnn_code lanes_decode(span words, const gbnn_tensor *tensor, const table *of, models *with, arena *memory,
                       id_array ids);

/* Place in a row of the symbol whose range holds `low`. */
static inline const uint32_t *find_symbol(const uint32_t *row, const uint16_t *tops, uint32_t low) {
    const uint32_t *found = row + tops[low >> (PRECISION - TOP_BITS)];
    found += (found[1] <= low) + (found[2] <= low) + (found[3] <= low);
    while (found[1] <= low) found++;
    return found;
}

#endif
