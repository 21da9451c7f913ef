/* Version 2: a stream per tensor, and contexts of sixteen rows side by side (docs/format.md, "version 2").
 *
 * Sums are float32, added in a fixed order and rounded after each operation. Loops over the lanes are short and without
 * branches, so that compilers make vector instructions of them.
 */

#include "ids.h"
#include "maths.h"

#define LANES 16
#define MOST_STATES 4
#define MANY ((uint64_t)1 << 17)
#define ROW_PRIOR 4
#define KERNEL_PRIOR 16
#define MEAN_PRIOR 32
#define ONE (127 << 4) /* lg_bits of 1 */
#define MOST_LEVEL 512
#define WIDEST (4 * N_LEVELS - 1)

/* Sixteen numbers: float32, or the integers that their bits are. */
typedef union {
    float real[LANES];
    int32_t whole[LANES];
} lanes;

typedef struct {
    uint64_t states[MOST_STATES];
    unsigned mask; /* number of states, less 1 */
    span words;    /* that are left */
} stream;

/* What is learnt of a tensor. */
typedef struct {
    size_t rows, columns, taps, width;
    bool predicts;
    rule rule;
    double *tap_sums, *tap_counts;      /* (taps) */
    float *column_sums, *column_usual;  /* (columns) */
    lanes *read;                        /* (taps), values of the column */
    float inverse_scales[N_LEVELS];
} walk;

/* What is learnt of a group of rows. */
typedef struct {
    lanes row_sums;
    float row_usual;
    lanes kernel_sums, kernel_usual;
    /* of the step */
    lanes levels, usual, expected, distances;
    int32_t row_offset, own; /* of all rows, and of the column */
    uint32_t contexts[LANES], states[LANES];
} group;

/* Sixteenths of octaves of a positive float32, plus ONE. */
static inline int32_t lg_bits(float number) { return (int32_t)(bits_of_float(number) >> 19); }

/* The inverse, without the ONE, for levels from 0 to 512. */
static inline float xp(int32_t level) { return float_of_bits((uint32_t)(level + ONE) << 19); }

static inline int32_t clipped(int32_t number, int32_t most) {
    number = number > 0 ? number : 0;
    return number < most ? number : most;
}

static inline float sum_of(const lanes *of) {
    const float *a = of->real;
    float first = ((a[0] + a[8]) + (a[4] + a[12])) + ((a[2] + a[10]) + (a[6] + a[14]));
    return first + (((a[1] + a[9]) + (a[5] + a[13])) + ((a[3] + a[11]) + (a[7] + a[15])));
}

static gbnn_code make_walk(walk *w, const gbnn_tensor *tensor, const table *of, arena *memory) {
    uint64_t taps, width;
    kernel_of(tensor, &taps, &width);
    w->rows = (size_t)tensor->shape[0];
    w->columns = (size_t)tensor->shape[1];
    w->taps = (size_t)taps;
    w->width = (size_t)width;
    w->rule = of->rule;
    w->predicts = taps > 1 && (of->rule.left != 0 || of->rule.above != 0 || of->rule.corner != 0);
    w->tap_sums = arena_take(memory, taps, sizeof(double));
    w->tap_counts = arena_take(memory, taps, sizeof(double));
    w->column_sums = arena_take(memory, w->columns, sizeof(float));
    w->column_usual = arena_take(memory, w->columns, sizeof(float));
    w->read = arena_take(memory, w->predicts ? taps : 1, sizeof(lanes));
    bool made = w->tap_sums != NULL && w->tap_counts != NULL && w->column_sums != NULL && w->column_usual != NULL &&
                w->read != NULL;
    if (!made) return GBNN_NO_MEMORY;
    double start = (double)ex(4 * of->rule.start);
    w->tap_sums[0] = MEAN_PRIOR * start;
    w->tap_counts[0] = MEAN_PRIOR;
    for (size_t i = 0; i < w->columns; i++) w->column_sums[i] = w->column_usual[i] = (float)(4 * start);
    for (int64_t level = 0; level < N_LEVELS; level++) w->inverse_scales[level] = 2.0f / (float)ex(4 * level + 2);
    return GBNN_OK;
}

static void start_group(const walk *w, group *g) {
    double mean = w->tap_sums[0] / w->tap_counts[0];
    memset(g, 0, sizeof *g);
    g->row_usual = (float)(ROW_PRIOR * (mean > 1.0 ? mean : 1.0));
    for (int lane = 0; lane < LANES; lane++) g->row_sums.real[lane] = g->row_usual;
}

static void start_column(group *g) {
    for (int lane = 0; lane < LANES; lane++) {
        g->kernel_sums.real[lane] = 0;
        g->kernel_usual.real[lane] = 0;
        g->expected.whole[lane] = 0;
    }
}

/* Expected magnitudes of a step's weights, in quarter octaves. */
static inline void find_levels(walk *w, group *g, size_t column, size_t tap) {
    if (w->tap_counts[tap] == 0) {
        w->tap_sums[tap] = MEAN_PRIOR * (w->tap_sums[tap - 1] / w->tap_counts[tap - 1]);
        w->tap_counts[tap] = MEAN_PRIOR;
    }
    double mean = w->tap_sums[tap] / w->tap_counts[tap];
    int32_t mean_level = lg_bits((float)(mean > 1.0 ? mean : 1.0)) - ONE;
    g->own = w->columns > 1 ? lg_bits(w->column_sums[column]) - lg_bits(w->column_usual[column]) : 0;
    g->row_offset = mean_level - lg_bits(g->row_usual);
    int32_t offset = g->row_offset + g->own;
    if (w->taps == 1) {
        for (int lane = 0; lane < LANES; lane++) {
            int32_t level = offset + (g->row_sums.whole[lane] >> 19);
            g->levels.whole[lane] = clipped(level, WIDEST) >> 2;
        }
        return;
    }
    lanes high, low;
    for (int lane = 0; lane < LANES; lane++) {
        int32_t level = clipped(offset + (g->row_sums.whole[lane] >> 19), MOST_LEVEL);
        g->levels.whole[lane] = level;
        g->usual.whole[lane] = (level + ONE) << 19;
    }
    for (int lane = 0; lane < LANES; lane++) {
        float linear = KERNEL_PRIOR * g->usual.real[lane];
        high.real[lane] = linear + g->kernel_sums.real[lane];
        low.real[lane] = linear + g->kernel_usual.real[lane];
    }
    for (int lane = 0; lane < LANES; lane++) {
        int32_t level = g->levels.whole[lane] + (high.whole[lane] >> 19) - (low.whole[lane] >> 19);
        g->levels.whole[lane] = clipped(level, WIDEST) >> 2;
    }
}

/* Values that the neighbours in the kernel predict. */
static inline void expect(const walk *w, group *g, size_t tap) {
    size_t x = tap % w->width, y = tap / w->width;
    const lanes *read = w->read, *beside = read + tap - 1;
    const lanes *over = read + (y > 0 ? tap - w->width : 0);
    const lanes *across = read + (x > 0 && y > 0 ? tap - w->width - 1 : 0);
    int32_t left = x > 0 ? w->rule.left : 0, above = y > 0 ? w->rule.above : 0;
    int32_t corner = x > 0 && y > 0 ? w->rule.corner : 0;
    for (int lane = 0; lane < LANES; lane++) {
        int32_t sum = left * beside->whole[lane] + above * over->whole[lane] + corner * across->whole[lane];
        g->expected.whole[lane] = sum >> 4;
    }
}

static inline void find_contexts(const walk *w, group *g, size_t tap) {
    if (!w->predicts || tap == 0) {
        for (int lane = 0; lane < LANES; lane++) {
            g->contexts[lane] = (uint32_t)(N_PREDICTIONS * g->levels.whole[lane] + REACH);
        }
        return;
    }
    lanes gain;
    expect(w, g, tap);
    for (int lane = 0; lane < LANES; lane++) gain.real[lane] = w->inverse_scales[g->levels.whole[lane]];
    for (int lane = 0; lane < LANES; lane++) {
        float halves = (float)g->expected.whole[lane] * gain.real[lane];
        halves = halves + (REACH + 0.5f);
        halves = halves > 0.0f ? halves : 0.0f;
        halves = halves < 2.0f * REACH ? halves : 2.0f * REACH;
        g->contexts[lane] = (uint32_t)(N_PREDICTIONS * g->levels.whole[lane] + (int32_t)halves);
    }
}

/* Learns from the values of a step, whose distances from what was expected are known. */
static inline void learn(walk *w, group *g, size_t column, size_t tap, size_t n_lanes) {
    if (w->taps > 1) {
        for (int lane = 0; lane < LANES; lane++) g->kernel_sums.real[lane] += g->distances.real[lane];
        for (int lane = 0; lane < LANES; lane++) g->kernel_usual.real[lane] += g->usual.real[lane];
    }
    lanes usual;
    for (int lane = 0; lane < LANES; lane++) {
        int32_t level = clipped(g->row_offset + (g->row_sums.whole[lane] >> 19), MOST_LEVEL);
        usual.whole[lane] = (level + ONE) << 19;
    }
    for (int lane = 0; lane < LANES; lane++) g->row_sums.real[lane] += g->distances.real[lane];
    for (size_t lane = n_lanes; lane < LANES; lane++) usual.real[lane] = 0;
    float total = sum_of(&g->distances);
    w->column_sums[column] += total;
    w->column_usual[column] += sum_of(&usual);
    w->tap_sums[tap] += (double)total;
    w->tap_counts[tap] += (double)n_lanes;
    int32_t common = g->row_offset + lg_bits(g->row_usual) + g->own;
    g->row_usual += xp(clipped(common, MOST_LEVEL));
}

/* Decodes one symbol; returns its number among those of the parity. */
static inline uint32_t next_symbol(stream *from, unsigned which, const uint32_t *row, const uint16_t *tops) {
    uint64_t state = from->states[which];
    uint32_t low = (uint32_t)state & (RANGE - 1);
    const uint32_t *found = find_symbol(row, tops, low);
    state = (state >> PRECISION) * (found[1] - found[0]) + (low - found[0]);
    if (state >> 32 == 0 && from->words.size > 0) state = state << 32 | load32(span_take(&from->words, 4).data);
    from->states[which] = state;
    return (uint32_t)(found - row);
}

/* The bits of the state machine's table, without a look-up. */
static inline uint32_t next_state(uint32_t before, uint32_t branch) {
    return (before & 3) << 1 | ((branch ^ before >> 1 ^ before >> 2) & 1);
}

/* Decodes the ids of a step; false if a state allows no symbol. */
static inline bool decode_step(walk *w, group *g, stream *from, models *with, const table *of, size_t n_lanes,
                               size_t number, size_t tap, uint32_t *ids) {
    for (size_t lane = 0; lane < n_lanes; lane++) {
        unsigned parity = of->has_trellis ? g->states[lane] & 1 : 0;
        uint32_t slot = 2 * g->contexts[lane] + parity;
        int32_t model = with->rows[slot];
        if (model < 0) model = models_add(with, slot, g->contexts[lane], parity);
        if (model < 0) return false;
        const uint32_t *cumulative = with->cumulative + (size_t)model * with->stride;
        const uint16_t *tops = with->tops + ((size_t)model << TOP_BITS);
        uint32_t j = next_symbol(from, (unsigned)(number + lane) & from->mask, cumulative, tops);
        uint32_t id = with->symbols[parity][j];
        ids[lane] = id;
        bool is_outlier = with->escapes[parity] && j + 1 == with->count[parity];
        if (of->has_trellis) g->states[lane] = next_state(g->states[lane], is_outlier ? 0 : id >> 1 & 1);
        if (!of->has_rule) continue;
        int32_t value = with->values[parity][j], far = value - g->expected.whole[lane];
        if (w->predicts) w->read[tap].whole[lane] = value;
        g->distances.real[lane] = (float)(far < 0 ? -far : far);
    }
    return true;
}

static inline bool decode_group(walk *w, group *g, stream *from, models *with, const table *of, size_t first,
                                unsigned char *bytes, unsigned width) {
    size_t n_lanes = w->rows - first < LANES ? w->rows - first : LANES, steps = w->columns * w->taps;
    size_t number = first * steps, place = number;
    start_group(w, g);
    for (size_t column = 0; column < w->columns; column++) {
        start_column(g);
        for (size_t tap = 0; tap < w->taps; tap++, number += n_lanes, place++) {
            uint32_t ids[LANES];
            if (of->has_rule) {
                find_levels(w, g, column, tap);
                find_contexts(w, g, tap);
            }
            if (!decode_step(w, g, from, with, of, n_lanes, number, tap, ids)) return false;
            if (of->has_rule) learn(w, g, column, tap, n_lanes);
            for (size_t lane = 0; lane < n_lanes; lane++) put_id(bytes, width, place + lane * steps, ids[lane]);
        }
    }
    return true;
}

static bool start_stream(stream *from, span words, uint64_t size) {
    size_t states = size >= MANY ? MOST_STATES : 1;
    if (words.size < 8 * states) return false;
    from->mask = (unsigned)states - 1;
    from->words = words;
    for (size_t index = 0; index < states; index++) {
        from->states[index] = (uint64_t)load32(from->words.data) << 32 | load32(from->words.data + 4);
        span_take(&from->words, 8);
    }
    return true;
}

static bool has_ended(const stream *from) {
    for (unsigned index = 0; index <= from->mask; index++) {
        if (from->states[index] != (from->mask > 0 ? (uint64_t)1 << 32 : 0)) return false;
    }
    return from->words.size == 0;
}

gbnn_code lanes_decode(span words, const gbnn_tensor *tensor, const table *of, models *with, arena *memory,
                       id_array ids) {
    stream from;
    group g;
    walk *w = arena_take(memory, 1, sizeof(walk));
    if (w == NULL) return GBNN_NO_MEMORY;
    TRY(make_walk(w, tensor, of, memory));
    if (!start_stream(&from, words, tensor->size)) return GBNN_STREAM;
    for (size_t first = 0; first < w->rows; first += LANES) {
        bool decoded = false;
        FOR_WIDTH(ids.width, decoded = decode_group(w, &g, &from, with, of, first, ids.bytes, WIDTH));
        if (!decoded) return GBNN_STREAM;
    }
    return has_ended(&from) ? GBNN_OK : GBNN_STREAM;
}
