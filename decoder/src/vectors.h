/* Unshared tensors, each a vector with a grid of its own (docs/format.md, "vectors"). */

#ifndef GBNN_VECTORS_H
#define GBNN_VECTORS_H

#include "bits.h"
#include "manifest.h"

typedef enum { LINEAR, LOGARITHMIC, EXACT, RELATIVE } vector_mode;

/* A vector, its values still in the bit string. */
typedef struct {
    vector_mode mode;
    int32_t exponent, order;
    int64_t centre;
    uint64_t place, rest_place; /* in bits: of the values or quotients, and of the low bits */
    size_t tensor;
    size_t variance; /* of a relative one: number of the vector of its variances */
} vector;

/* Reads what is said of each vector, and checks that its values are there.
 *
 * numbers  for each tensor of the manifest, its number among those of its kind
 */
gbnn_code vectors_read(span bytes, const manifest *of, const uint32_t *numbers, size_t count, vector *into);

/* Writes the weights of a vector at its dtype. */
void vector_decode(span bytes, const vector *vectors, size_t number, const gbnn_tensor *tensor, unsigned char *out);

#endif
