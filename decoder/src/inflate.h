/* Raw deflate (RFC 1951): with zlib, or in WebAssembly with inflate_small.c. */

#ifndef GBNN_INFLATE_H
#define GBNN_INFLATE_H

#include "core.h"

#define DEFLATE_WINDOW 32768

/* Largest output of a stream, per byte. */
#define LARGEST_EXPANSION 1032

/* Decodes a stream that takes all of `from`.
 *
 * dictionary  at most DEFLATE_WINDOW bytes, as if they were before the output
 * to, room    where the output goes
 * size        number of bytes that were written, at most room
 */
gbnn_code inflate_stream(span from, span dictionary, unsigned char *to, size_t room, size_t *size);

#endif
