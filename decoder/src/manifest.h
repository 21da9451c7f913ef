/* The manifest: names, shapes and ties of the tensors, and the facts (docs/format.md, "Manifest"). */

#ifndef GBNN_MANIFEST_H
#define GBNN_MANIFEST_H

#include "core.h"
#include "json.h"

typedef struct {
    gbnn_tensor *tensors;
    size_t count;
    uint32_t *by_name; /* numbers of the tensors, sorted by name */
    double noise;
} manifest;

/* What may still be read of the manifests of a file. */
typedef struct {
    size_t json_bytes;
    uint64_t name_characters;
} manifest_budget;

#define MOST_JSON_BYTES ((size_t)1 << 22)
#define MOST_NAME_CHARACTERS ((uint64_t)1 << 23)

/* Reads the section and checks all that it says.
 *
 * left        what its file may still hold; less afterwards
 * dictionary  the preset dictionary of its stream
 * following   NULL, or DEFLATE_WINDOW bytes for the dictionary of the members after it: that, then this one's text
 */
gbnn_code manifest_read(span section, manifest_budget *left, span dictionary, arena *memory, manifest *into,
                        span *following);

/* Number of the tensor of a name whose text is in two parts, or SIZE_MAX. */
size_t manifest_find(const manifest *in, span start, span end);

/* The preset dictionary of the format. */
span manifest_dictionary(void);

/* Reads the strings that describe the tensors, and the ties. */
gbnn_code rows_read(const json *text, uint32_t rows, uint32_t ties, uint64_t *characters, arena *memory,
                    manifest *into);

/* Checks the facts that reports, predictions and draws need, and reads the noise. */
bool facts_hold(const json *text, double *noise);

#endif
