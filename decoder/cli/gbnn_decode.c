/* gbnn-decode ARTIFACT OUT.safetensors [--member N]: the dense weights of an artifact.
 *
 * Exit codes: 0 done; 2 wrong usage, or a file that cannot be read, decoded or written.
 *
 * As `gbnn-compress decompress`, it writes a new file and gives that the output's name: what is behind a link is replaced,
 * and devices, pipes and write-protected files are refused.
 */

#define _FILE_OFFSET_BITS 64
#define _XOPEN_SOURCE 700

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../gbnn.h"

typedef struct {
    unsigned char *data;
    size_t size;
} bytes;

#define FAILED 2

static int failed(const char *path, const char *reason) {
    fprintf(stderr, "gbnn-decode: `%s`: %s\n", path, reason);
    return FAILED;
}

/* As in the library (src/container.c), of which the tool sees gbnn.h only. */
#define LARGEST_HEADER ((uint64_t)1 << 20)

/* Whether a file may be an artifact, by its first bytes: the length of a JSON object. */
static bool may_be_artifact(const unsigned char *start, size_t size) {
    uint64_t length = 0;
    if (size < 9 || start[8] != '{') return false;
    for (int index = 0; index < 8; index++) length |= (uint64_t)start[index] << 8 * index;
    return length <= LARGEST_HEADER;
}

/* Reads a file to its end, or the start of one that is no artifact; NULL in data after an error. */
static bytes read_file(const char *path) {
    bytes result = {NULL, 0};
    size_t room = (size_t)1 << 16, got;
    errno = 0;
    FILE *file = fopen(path, "rb");
    if (file == NULL) return result;
    result.data = malloc(room);
    while (result.data != NULL && (got = fread(result.data + result.size, 1, room - result.size, file)) > 0) {
        result.size += got;
        if (result.size == got && !may_be_artifact(result.data, got)) break;
        if (result.size < room) continue;
        unsigned char *larger = room > SIZE_MAX / 2 ? NULL : realloc(result.data, 2 * room);
        if (larger == NULL) {
            free(result.data);
            errno = ENOMEM;
        }
        result.data = larger;
        room *= 2;
    }
    if (ferror(file)) {
        free(result.data);
        result.data = NULL;
        if (errno == 0) errno = EIO;
    }
    fclose(file);
    return result;
}

/* The name of a dtype in safetensors files, or NULL if they lack it. */
static const char *safetensors_dtype(gbnn_dtype dtype) {
    static const char *const names[GBNN_DTYPES] = {
        [GBNN_BOOL] = "BOOL",
        [GBNN_INT8] = "I8",
        [GBNN_UINT8] = "U8",
        [GBNN_FLOAT8_E4M3FN] = "F8_E4M3",
        [GBNN_FLOAT8_E4M3FNUZ] = "F8_E4M3FNUZ",
        [GBNN_FLOAT8_E5M2] = "F8_E5M2",
        [GBNN_FLOAT8_E5M2FNUZ] = "F8_E5M2FNUZ",
        [GBNN_FLOAT8_E8M0FNU] = "F8_E8M0",
        [GBNN_INT16] = "I16",
        [GBNN_UINT16] = "U16",
        [GBNN_FLOAT16] = "F16",
        [GBNN_BFLOAT16] = "BF16",
        [GBNN_INT32] = "I32",
        [GBNN_UINT32] = "U32",
        [GBNN_FLOAT32] = "F32",
        [GBNN_INT64] = "I64",
        [GBNN_UINT64] = "U64",
        [GBNN_FLOAT64] = "F64",
        [GBNN_COMPLEX64] = "C64",
    };
    return names[dtype];
}

static void write_name(FILE *file, const gbnn_tensor *tensor) {
    fputc('"', file);
    for (size_t index = 0; index < tensor->name_bytes; index++) {
        unsigned char letter = (unsigned char)tensor->name[index];
        if (letter < 32 || letter == 127) fprintf(file, "\\u%04x", letter);
        else if (letter == '"' || letter == '\\') fprintf(file, "\\%c", letter);
        else fputc(letter, file);
    }
    fputc('"', file);
}

/* Numbers of the tensors, wide dtypes first, so that all values are aligned. */
static size_t *by_width(const gbnn_file *artifact, size_t member) {
    size_t count = gbnn_tensor_count(artifact, member), place = 0;
    size_t *order = calloc(count + 1, sizeof *order);
    for (size_t width = 16; width > 0 && order != NULL; width /= 2) {
        for (size_t index = 0; index < count; index++) {
            if (gbnn_dtype_bytes(gbnn_describe(artifact, member, index).dtype) == width) order[place++] = index;
        }
    }
    return order;
}

static bool write_at(FILE *file, off_t place, const void *data, size_t size) {
    return fseeko(file, place, SEEK_SET) == 0 && fwrite(data, 1, size, file) == size;
}

/* The JSON header, padded to a multiple of 8 bytes; its length before it is written at the end. False after an error. */
static bool write_header(FILE *file, const gbnn_file *artifact, size_t member, const size_t *order) {
    unsigned char length[8] = {0};
    uint64_t start = 0;
    fwrite(length, 1, sizeof length, file);
    fputs("{\"__metadata__\":{\"format\":\"pt\"}", file);
    for (size_t place = 0; place < gbnn_tensor_count(artifact, member); place++) {
        gbnn_tensor tensor = gbnn_describe(artifact, member, order[place]);
        uint64_t stop = start + tensor.size_bytes;
        fputc(',', file);
        write_name(file, &tensor);
        fprintf(file, ":{\"dtype\":\"%s\",\"shape\":[", safetensors_dtype(tensor.dtype));
        for (size_t index = 0; index < tensor.dimensions; index++) {
            fprintf(file, index > 0 ? ",%llu" : "%llu", (unsigned long long)tensor.shape[index]);
        }
        fprintf(file, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)start, (unsigned long long)stop);
        start = stop;
    }
    fputc('}', file);
    off_t stop = ftello(file);
    for (; stop > 0 && stop % 8 != 0; stop++) fputc(' ', file);
    uint64_t size = (uint64_t)stop - 8;
    for (int index = 0; index < 8; index++) length[index] = (unsigned char)(size >> 8 * index);
    return stop > 0 && write_at(file, 0, length, sizeof length) && fseeko(file, stop, SEEK_SET) == 0;
}

/* Decodes all tensors in the order of the file, and writes each where the header says. */
static gbnn_code write_tensors(FILE *file, gbnn_file *artifact, size_t member, const size_t *order, bool *is_written) {
    size_t count = gbnn_tensor_count(artifact, member);
    off_t first = ftello(file);
    uint64_t *starts = calloc(count + 1, sizeof *starts), start = 0;
    gbnn_code code = starts == NULL ? GBNN_ERROR_NO_MEMORY : GBNN_OK;
    for (size_t place = 0; place < count && code == GBNN_OK; place++) {
        starts[order[place]] = start;
        start += gbnn_describe(artifact, member, order[place]).size_bytes;
    }
    for (size_t index = 0; index < count && code == GBNN_OK; index++) {
        gbnn_tensor tensor = gbnn_describe(artifact, member, index);
        void *weights = tensor.size_bytes < SIZE_MAX ? malloc((size_t)tensor.size_bytes + 1) : NULL;
        code = weights == NULL ? GBNN_ERROR_NO_MEMORY : gbnn_decode(artifact, member, index, weights);
        off_t place = first + (off_t)starts[index];
        if (code == GBNN_OK && !write_at(file, place, weights, (size_t)tensor.size_bytes)) *is_written = false;
        free(weights);
    }
    free(starts);
    return code;
}

/* Where the output goes, behind links, and the permissions that it gets: its own or the usual ones. */
typedef struct {
    char *path;
    mode_t mode;
} target;

/* NULL, or why there can be no file. */
static const char *find_target(const char *path, target *found) {
    struct stat info;
    mode_t mask = umask(0);
    umask(mask);
    found->mode = 0666 & ~mask;
    found->path = NULL;
    if (lstat(path, &info) != 0) {
        found->path = strdup(path);
        return found->path == NULL ? gbnn_error_message(GBNN_ERROR_NO_MEMORY) : NULL;
    }
    found->path = realpath(path, NULL);
    if (found->path == NULL || stat(found->path, &info) != 0) return "it is a broken link; remove it";
    if (S_ISDIR(info.st_mode)) return "it is a directory; name a file";
    if (!S_ISREG(info.st_mode)) return "it is a device or a pipe; name a file";
    if (access(found->path, W_OK) != 0) return "it is write-protected; remove it, or choose another name";
    found->mode = info.st_mode & 0777;
    return NULL;
}

/* A new name beside a file: a dot, the start of its name, and XXXXXX for mkstemp. */
static char *new_name(const char *path) {
    const char *slash = strrchr(path, '/'), *name = slash == NULL ? path : slash + 1;
    char *result = malloc(strlen(path) + 9);
    if (result != NULL) sprintf(result, "%.*s.%.50s.XXXXXX", (int)(name - path), path, name);
    return result;
}

/* Makes the file; `name` ends in XXXXXX. */
static FILE *new_file(char *name, mode_t mode) {
    int file = mkstemp(name);
    if (file >= 0) fchmod(file, mode);
    return file < 0 ? NULL : fdopen(file, "wb");
}

/* Writes a file under another name, and gives it its own name when it is whole. */
static int write_file(const char *path, const char *from, gbnn_file *artifact, size_t member) {
    target to;
    const char *reason = find_target(path, &to);
    size_t *order = by_width(artifact, member);
    char *temporary = reason == NULL ? new_name(to.path) : NULL;
    FILE *file = NULL;
    int result = FAILED;
    if (reason != NULL) {
        failed(path, reason);
    } else if (order == NULL || temporary == NULL) {
        failed(path, gbnn_error_message(GBNN_ERROR_NO_MEMORY));
    } else if (file = new_file(temporary, to.mode), file == NULL) {
        failed(path, strerror(errno));
    } else {
        bool is_written = write_header(file, artifact, member, order);
        gbnn_code code = write_tensors(file, artifact, member, order, &is_written);
        if (ferror(file) || fflush(file) != 0 || fsync(fileno(file)) != 0) is_written = false;
        if (fclose(file) != 0) is_written = false;
        if (code != GBNN_OK) failed(from, gbnn_error_message(code));
        else if (!is_written) failed(path, "cannot be written; is the disk full?");
        else if (rename(temporary, to.path) != 0) failed(path, strerror(errno));
        else result = 0;
        if (result != 0) remove(temporary);
    }
    free(order);
    free(temporary);
    free(to.path);
    return result;
}

/* What a member is called in messages: the file, and of an ensemble its number. */
static void name_member(char *into, size_t room, const char *path, size_t members, size_t member) {
    if (members > 1) snprintf(into, room, "%s, member %zu", path, member);
    else snprintf(into, room, "%s", path);
}

static int choose_member(const char *path, const gbnn_file *artifact, const char *option, size_t *member) {
    size_t members = gbnn_member_count(artifact);
    char *end = NULL;
    *member = 0;
    if (option == NULL && members == 1) return 0;
    if (option != NULL && *option >= '0' && *option <= '9') *member = (size_t)strtoul(option, &end, 10);
    if (end != NULL && *end == 0 && *member < members) return 0;
    if (members == 1) {
        fprintf(stderr, "gbnn-decode: `%s` holds one network: expected `--member 0`, or no option\n", path);
        return FAILED;
    }
    fprintf(stderr, "gbnn-decode: `%s` is an ensemble of %zu networks: choose one with --member:\n", path, members);
    for (size_t index = 0; index < members; index++) {
        uint64_t values = 0;
        size_t count = gbnn_tensor_count(artifact, index);
        for (size_t i = 0; i < count; i++) values += gbnn_describe(artifact, index, i).size;
        fprintf(stderr, "  --member %zu   %zu tensors, %llu values, version %d\n", index, count,
                (unsigned long long)values, gbnn_version(artifact, index));
    }
    return FAILED;
}

static int check_dtypes(const char *path, const gbnn_file *artifact, size_t member) {
    for (size_t index = 0; index < gbnn_tensor_count(artifact, member); index++) {
        gbnn_tensor tensor = gbnn_describe(artifact, member, index);
        if (safetensors_dtype(tensor.dtype) != NULL) continue;
        fprintf(stderr, "gbnn-decode: `%s`: tensor ", path);
        write_name(stderr, &tensor);
        fprintf(stderr, " has the dtype %s, which safetensors lacks\n", gbnn_dtype_name(tensor.dtype));
        return FAILED;
    }
    return 0;
}

/* Whether two names are those of one file, which is there. */
static int is_same_file(const char *first, const char *second) {
    struct stat a, b;
    return stat(first, &a) == 0 && stat(second, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static int decode(const char *path, const char *output, const char *option) {
    if (is_same_file(path, output)) {
        fprintf(stderr, "gbnn-decode: `%s` is the artifact itself: choose another output\n", output);
        return FAILED;
    }
    bytes data = read_file(path);
    if (data.data == NULL) return failed(path, strerror(errno));
    char name[4096];
    gbnn_file *artifact;
    size_t member;
    gbnn_code code = gbnn_open(data.data, data.size, &artifact, &member);
    int result;
    if (code != GBNN_OK) {
        name_member(name, sizeof name, path, member == SIZE_MAX ? 1 : 2, member);
        result = failed(name, gbnn_error_message(code));
    } else {
        result = choose_member(path, artifact, option, &member);
        name_member(name, sizeof name, path, gbnn_member_count(artifact), member);
        if (result == 0) result = check_dtypes(name, artifact, member);
        if (result == 0) result = write_file(output, name, artifact, member);
    }
    gbnn_close(artifact);
    free(data.data);
    return result;
}

int main(int count, char **arguments) {
    const char *paths[2], *option = NULL;
    int given = 0, is_right = 1;
    for (int index = 1; index < count; index++) {
        if (strcmp(arguments[index], "--member") == 0 && index + 1 < count) option = arguments[++index];
        else if (strncmp(arguments[index], "--member=", 9) == 0) option = arguments[index] + 9;
        else if (arguments[index][0] == '-' || given == 2) is_right = 0;
        else paths[given++] = arguments[index];
    }
    if (is_right && given == 2) return decode(paths[0], paths[1], option);
    bool is_asked = count == 2 && (strcmp(arguments[1], "--help") == 0 || strcmp(arguments[1], "-h") == 0);
    fputs("usage: gbnn-decode ARTIFACT OUT.safetensors [--member N]\n", is_asked ? stdout : stderr);
    return is_asked ? 0 : FAILED;
}
