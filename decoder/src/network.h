/* An open file: its networks, and where the parts of each are. */

#ifndef GBNN_NETWORK_H
#define GBNN_NETWORK_H

#include "container.h"
#include "ids.h"
#include "vectors.h"

/* A shared tensor. Where its ids and outliers start is known once those before it are decoded. */
typedef struct {
    size_t tensor;
    table table;
    span words; /* version 2 */
    stack_state stack;
    size_t outliers_start; /* in bytes */
} shared;

typedef struct {
    int version;
    manifest manifest;
    bank bank;
    uint32_t *numbers; /* of each tensor among those of its kind */
    size_t n_shared, n_unshared;
    size_t n_known; /* shared tensors before this one are decoded; its start is known */
    shared *shared;
    vector *vectors;
    size_t *raw_starts; /* of each tensor, in bytes */
    span tables, ids, outliers, vector_bits, raw;
} network;

struct gbnn_file {
    arena memory;
    container container;
    network *networks;
};

/* What must hold once all ids are decoded. */
static inline gbnn_code check_end(const network *m, stack_state stack, size_t outliers) {
    if (m->version == 1 && (stack.state != 0 || stack.left != 0)) return GBNN_ERROR_STREAM;
    return outliers == m->outliers.size ? GBNN_OK : GBNN_ERROR_OUTLIERS;
}

#endif
