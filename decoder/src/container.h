/* The file around the sections: a safetensors header, the table of sections, their checksums. */

#ifndef GBNN_CONTAINER_H
#define GBNN_CONTAINER_H

#include "core.h"

#define MOST_MEMBERS 64

enum { MANIFEST, BANK, MAPS, OUTLIERS, VALUES, N_SECTIONS };

typedef struct {
    int version;
    span data; /* as in the tensor of a single file */
} container_member;

typedef struct {
    size_t count;
    container_member members[MOST_MEMBERS];
} container;

/* Reads the header. */
gbnn_code container_open(span file, container *into);

/* Splits a member into its sections, and checks them. */
gbnn_code container_sections(const container_member *member, span sections[N_SECTIONS]);

uint32_t crc32_of(span bytes);

#endif
