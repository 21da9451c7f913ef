#include <limits.h>
#include <zlib.h>

#include "inflate.h"

/* Runs zlib until the stream ends; its counters have fewer bits than sizes. */
static bool run(z_stream *stream, span from, size_t room) {
    stream->next_in = (z_const Bytef *)(uintptr_t)from.data;
    for (;;) {
        size_t given = from.size < UINT_MAX ? from.size : UINT_MAX, free = room < UINT_MAX ? room : UINT_MAX;
        stream->avail_in = (uInt)given;
        stream->avail_out = (uInt)free;
        int result = inflate(stream, Z_NO_FLUSH);
        from.size -= given - stream->avail_in;
        room -= free - stream->avail_out;
        if (result == Z_STREAM_END) return from.size == 0;
        if (result != Z_OK) return false;
    }
}

gbnn_code inflate_stream(span from, span dictionary, unsigned char *to, size_t room, size_t *size) {
    z_stream stream = {0};
    if (inflateInit2(&stream, -15) != Z_OK) return GBNN_ERROR_NO_MEMORY;
    bool ended = true;
    if (dictionary.size > 0) ended = inflateSetDictionary(&stream, dictionary.data, (uInt)dictionary.size) == Z_OK;
    stream.next_out = to;
    ended = ended && run(&stream, from, room);
    *size = (size_t)(stream.next_out - to);
    inflateEnd(&stream);
    return ended ? GBNN_OK : GBNN_ERROR_DEFLATE;
}
