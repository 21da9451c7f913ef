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

/* Reads the section and checks all that it says.
 *
 * dictionary  the preset dictionary of its stream
 * following   NULL, or DEFLATE_WINDOW bytes for the dictionary of the members after it: that, then this one's text
 */
gbnn_code manifest_read(span section, span dictionary, arena *memory, manifest *into, span *following);

/* Number of the tensor of a name whose text is in two parts, or SIZE_MAX. */
size_t manifest_find(const manifest *in, span start, span end);

/* The preset dictionary of the format. */
span manifest_dictionary(void);

/* Reads the strings that describe the tensors, and the ties. */
gbnn_code rows_read(const json *text, uint32_t rows, uint32_t ties, arena *memory, manifest *into);

/* Checks the facts that reports, predictions and draws need, and reads the noise. */
bool facts_hold(const json *text, double *noise);

#endif
