/* Version 2: a stream per tensor, and contexts of sixteen rows side by side (docs/format.md, "version 2").
 *
 * Sums are float32, added in a fixed order and rounded after each operation. Loops over the lanes are short and without
 * branches, so that compilers make vector instructions of them.
 */

#include "ids.h"
#include "maths.h"

#define LANES 16
#define QUADS 4
#define MOST_STATES 4
#define MANY ((uint64_t)1 << 17)
#define ROW_PRIOR 4
#define KERNEL_PRIOR 16
#define MEAN_PRIOR 32
#define ONE (127 << 4) /* lg_bits of 1 */
#define MOST_LEVEL 512
#define WIDEST (4 * N_LEVELS - 1)

/* Four numbers, which every compiler for which `vector_size` exists handles at once, by itself or one after the other. */
typedef int32_t wholes __attribute__((vector_size(16)));
typedef float reals __attribute__((vector_size(16)));

/* Sixteen numbers: float32, or the integers that their bits are. */
typedef union {
    reals real[QUADS];
    wholes whole[QUADS];
    int32_t one[LANES];
} lanes;

#define EACH_QUAD for (int q = 0; q < QUADS; q++)

typedef struct {
    uint64_t states[MOST_STATES];
    unsigned mask; /* number of states, less 1 */
    span words;    /* that are left */
} stream;

/* What is learnt of a tensor. */
typedef struct {
    size_t rows, columns, taps, width;
    bool predicts, has_rule, has_trellis;
    rule rule;
    double *tap_sums, *tap_counts;     /* (taps) */
    float *column_sums, *column_usual; /* (columns) */
    lanes *read;                       /* (taps), values of the column */
    float inverse_scales[N_LEVELS];
} walk;

/* What is learnt of a group of rows. */
typedef struct {
    size_t n_lanes;
    lanes row_sums, kernel_sums, kernel_usual;
    float row_usual;
    lanes states; /* of the trellis */
    /* of the step */
    int32_t row_offset, own; /* of all rows, and of the column */
    lanes usual, expected, contexts, slots;
} group;

/* Sixteenths of octaves of a positive float32, plus ONE. */
static inline int32_t lg_bits(float number) { return (int32_t)(bits_of_float(number) >> 19); }

/* The inverse, without the ONE, for levels from 0 to 512. */
static inline float xp(int32_t level) { return float_of_bits((uint32_t)(level + ONE) << 19); }

static inline int32_t clipped(int32_t number, int32_t most) {
    number = number > 0 ? number : 0;
    return number < most ? number : most;
}

static inline wholes chosen(wholes mask, wholes yes, wholes no) { return (mask & yes) | (~mask & no); }

static inline wholes clipped4(wholes numbers, int32_t most) {
    const wholes mosts = {most, most, most, most};
    numbers &= numbers > 0;
    return chosen(numbers < most, numbers, mosts);
}

static inline wholes lg4(wholes numbers) { return numbers >> 19; }

static inline wholes xp4(wholes levels) { return (levels + ONE) << 19; }

/* The sum in the order of the format: one half is added to the other, four times. */
static inline float sum_of(const lanes *of) {
    reals four = (of->real[0] + of->real[2]) + (of->real[1] + of->real[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

static gbnn_code make_walk(walk *w, const gbnn_tensor *tensor, const table *of, arena *memory) {
    uint64_t taps, width;
    kernel_of(tensor, &taps, &width);
    w->rows = (size_t)tensor->shape[0];
    w->columns = (size_t)tensor->shape[1];
    w->taps = (size_t)taps;
    w->width = (size_t)width;
    w->rule = of->rule;
    w->has_rule = of->has_rule;
    w->has_trellis = of->has_trellis;
    w->predicts = taps > 1 && (of->rule.left != 0 || of->rule.above != 0 || of->rule.corner != 0);
    w->tap_sums = arena_take(memory, taps, sizeof(double));
    w->tap_counts = arena_take(memory, taps, sizeof(double));
    w->column_sums = arena_take(memory, w->columns, sizeof(float));
    w->column_usual = arena_take(memory, w->columns, sizeof(float));
    w->read = arena_take(memory, w->predicts ? taps : 1, sizeof(lanes));
    bool made = w->tap_sums != NULL && w->tap_counts != NULL && w->column_sums != NULL && w->column_usual != NULL &&
                w->read != NULL;
    if (!made) return GBNN_ERROR_NO_MEMORY;
    double start = (double)ex(4 * of->rule.start);
    w->tap_sums[0] = MEAN_PRIOR * start;
    w->tap_counts[0] = MEAN_PRIOR;
    for (size_t i = 0; i < w->columns; i++) w->column_sums[i] = w->column_usual[i] = (float)(4 * start);
    for (int64_t level = 0; level < N_LEVELS; level++) w->inverse_scales[level] = 2.0f / (float)ex(4 * level + 2);
    return GBNN_OK;
}

static void start_group(const walk *w, group *g, size_t first) {
    double mean = w->tap_sums[0] / w->tap_counts[0];
    memset(g, 0, sizeof *g);
    g->n_lanes = w->rows - first < LANES ? w->rows - first : LANES;
    g->row_usual = (float)(ROW_PRIOR * (mean > 1.0 ? mean : 1.0));
    EACH_QUAD g->row_sums.real[q] = g->row_sums.real[q] + g->row_usual;
}

static void start_column(group *g) {
    memset(&g->kernel_sums, 0, sizeof(lanes));
    memset(&g->kernel_usual, 0, sizeof(lanes));
    memset(&g->expected, 0, sizeof(lanes));
}

/* Expected magnitudes of a step's weights, in quarter octaves. */
static inline lanes find_levels(walk *w, group *g, size_t column, size_t tap) {
    if (w->tap_counts[tap] == 0) {
        w->tap_sums[tap] = MEAN_PRIOR * (w->tap_sums[tap - 1] / w->tap_counts[tap - 1]);
        w->tap_counts[tap] = MEAN_PRIOR;
    }
    double mean = w->tap_sums[tap] / w->tap_counts[tap];
    int32_t mean_level = lg_bits((float)(mean > 1.0 ? mean : 1.0)) - ONE;
    g->own = w->columns > 1 ? lg_bits(w->column_sums[column]) - lg_bits(w->column_usual[column]) : 0;
    g->row_offset = mean_level - lg_bits(g->row_usual);
    int32_t offset = g->row_offset + g->own;
    lanes levels;
    if (w->taps == 1) {
        EACH_QUAD levels.whole[q] = clipped4(offset + lg4(g->row_sums.whole[q]), WIDEST) >> 2;
        return levels;
    }
    EACH_QUAD {
        lanes high, low;
        wholes level = clipped4(offset + lg4(g->row_sums.whole[q]), MOST_LEVEL);
        g->usual.whole[q] = xp4(level);
        reals linear = (float)KERNEL_PRIOR * g->usual.real[q];
        high.real[q] = linear + g->kernel_sums.real[q];
        low.real[q] = linear + g->kernel_usual.real[q];
        levels.whole[q] = clipped4(level + lg4(high.whole[q]) - lg4(low.whole[q]), WIDEST) >> 2;
    }
    return levels;
}

/* Values that the neighbours in the kernel predict. */
static inline void expect(const walk *w, group *g, size_t tap) {
    size_t x = tap % w->width, y = tap / w->width;
    const lanes *read = w->read, *beside = read + tap - 1;
    const lanes *over = read + (y > 0 ? tap - w->width : 0);
    const lanes *across = read + (x > 0 && y > 0 ? tap - w->width - 1 : 0);
    int32_t left = x > 0 ? w->rule.left : 0, above = y > 0 ? w->rule.above : 0;
    int32_t corner = x > 0 && y > 0 ? w->rule.corner : 0;
    EACH_QUAD {
        wholes sum = left * beside->whole[q] + above * over->whole[q] + corner * across->whole[q];
        g->expected.whole[q] = sum >> 4;
    }
}

static inline void find_contexts(const walk *w, group *g, const lanes *levels, size_t tap) {
    EACH_QUAD g->contexts.whole[q] = N_PREDICTIONS * levels->whole[q] + REACH;
    if (!w->predicts || tap == 0) return;
    expect(w, g, tap);
    const float *scales = w->inverse_scales;
    const reals nothing = {0, 0, 0, 0}, most = nothing + 2.0f * REACH;
    EACH_QUAD {
        const int32_t *level = levels->one + 4 * q;
        reals gain = {scales[level[0]], scales[level[1]], scales[level[2]], scales[level[3]]};
        reals halves = __builtin_convertvector(g->expected.whole[q], reals) * gain + (REACH + 0.5f);
        halves = (reals)((wholes)halves & (halves > nothing));
        halves = (reals)chosen(halves < most, (wholes)halves, (wholes)most);
        g->contexts.whole[q] += __builtin_convertvector(halves, wholes) - REACH;
    }
}

/* Learns from how far the values of a step are from what was expected. */
static inline void learn(walk *w, group *g, const lanes *distances, size_t column, size_t tap) {
    lanes usual;
    if (w->taps > 1) {
        EACH_QUAD g->kernel_sums.real[q] += distances->real[q];
        EACH_QUAD g->kernel_usual.real[q] += g->usual.real[q];
    }
    EACH_QUAD usual.whole[q] = xp4(clipped4(g->row_offset + lg4(g->row_sums.whole[q]), MOST_LEVEL));
    EACH_QUAD g->row_sums.real[q] += distances->real[q];
    for (size_t lane = g->n_lanes; lane < LANES; lane++) usual.one[lane] = 0;
    float total = sum_of(distances);
    w->column_sums[column] += total;
    w->column_usual[column] += sum_of(&usual);
    w->tap_sums[tap] += (double)total;
    w->tap_counts[tap] += (double)g->n_lanes;
    int32_t common = g->row_offset + lg_bits(g->row_usual) + g->own;
    g->row_usual += xp(clipped(common, MOST_LEVEL));
}

/* Makes the rows that are missing. If others were dropped for one, all lanes must be looked up again. */
static bool add_rows(const group *g, models *with, int32_t places[LANES]) {
    for (size_t lane = 0; lane < g->n_lanes;) {
        uint32_t slot = (uint32_t)g->slots.one[lane], used = with->used;
        if (with->places[slot] < 0) {
            if (models_add(with, slot, (uint32_t)g->contexts.one[lane], slot & 1) < 0) return false;
            if (with->used <= used) {
                lane = 0;
                continue;
            }
        }
        places[lane] = with->places[slot];
        lane++;
    }
    return true;
}

/* Finds the rows of a step's slots; false if one allows no symbol. */
static inline bool find_rows(group *g, models *with, int32_t places[LANES]) {
    int32_t all = 0;
    EACH_QUAD g->slots.whole[q] = 2 * g->contexts.whole[q] + (g->states.whole[q] & 1);
    if (g->n_lanes < LANES) return add_rows(g, with, places);
    for (int lane = 0; lane < LANES; lane++) {
        places[lane] = with->places[g->slots.one[lane]];
        all |= places[lane];
    }
    return all >= 0 || add_rows(g, with, places);
}

/* Decodes the number of a symbol. At least one word is left, or `stop` is where the words end. */
static inline uint32_t next_symbol(uint64_t *state, const unsigned char **words, const unsigned char *stop,
                                   const uint32_t *row, unsigned shift) {
    uint32_t low = (uint32_t)*state & (RANGE - 1);
    range found = find_symbol(row, low, shift);
    uint64_t next = (*state >> PRECISION) * (found.stop - found.start) + (low - found.start);
    bool is_short = next >> 32 == 0;
    if (stop == NULL) {
        uint64_t longer = next << 32 | load32(*words);
        next = is_short ? longer : next;
        *words += 4 * (size_t)is_short;
    } else if (is_short && *words < stop) {
        next = next << 32 | load32(*words);
        *words += 4;
    }
    *state = next;
    return found.number;
}

/* Decodes the symbols of a step. */
static inline void next_symbols(stream *from, const models *with, const int32_t places[LANES], size_t n_lanes,
                                size_t number, uint32_t symbols[LANES]) {
    const unsigned char *words = from->words.data, *stop = words + from->words.size;
    const uint32_t *rows = with->rows;
    const unsigned shift = with->shift;
    if (n_lanes == LANES && from->words.size >= 4 * LANES && from->mask > 0) {
        uint64_t a = from->states[0], b = from->states[1], c = from->states[2], d = from->states[3];
        for (int lane = 0; lane < LANES; lane += 4) {
            symbols[lane] = next_symbol(&a, &words, NULL, rows + places[lane], shift);
            symbols[lane + 1] = next_symbol(&b, &words, NULL, rows + places[lane + 1], shift);
            symbols[lane + 2] = next_symbol(&c, &words, NULL, rows + places[lane + 2], shift);
            symbols[lane + 3] = next_symbol(&d, &words, NULL, rows + places[lane + 3], shift);
        }
        from->states[0] = a;
        from->states[1] = b;
        from->states[2] = c;
        from->states[3] = d;
    } else {
        for (size_t lane = 0; lane < n_lanes; lane++) {
            uint64_t *state = &from->states[(number + lane) & from->mask];
            symbols[lane] = next_symbol(state, &words, stop, rows + places[lane], shift);
        }
    }
    from->words = span_of(words, (size_t)(stop - words));
}

/* The states after a step, by the bits of the table `next` without a look-up. */
static inline void next_states(group *g, const lanes *ids, int32_t outlier) {
    EACH_QUAD {
        wholes id = ids->whole[q], before = g->states.whole[q];
        wholes branch = (id >> 1) & (id != outlier);
        g->states.whole[q] = (before & 3) << 1 | ((branch ^ before >> 1 ^ before >> 2) & 1);
    }
}

/* Looks up ids and values of the symbols of a step. */
static inline void take_symbols(const symbol *all, const uint32_t symbols[LANES], lanes *ids, lanes *values) {
    EACH_QUAD {
        const uint32_t *four = symbols + 4 * q;
        symbol a = all[four[0]], b = all[four[1]], c = all[four[2]], d = all[four[3]];
        ids->whole[q] = (wholes){(int32_t)a.id, (int32_t)b.id, (int32_t)c.id, (int32_t)d.id};
        values->whole[q] = (wholes){a.value, b.value, c.value, d.value};
    }
}

/* Decodes the ids of a step; false if a state allows no symbol. */
static inline bool decode_step(walk *w, group *g, stream *from, models *with, size_t column, size_t tap, size_t number,
                               lanes *ids) {
    int32_t places[LANES];
    uint32_t symbols[LANES] = {0};
    lanes values, distances;
    if (w->has_rule) {
        lanes levels = find_levels(w, g, column, tap);
        find_contexts(w, g, &levels, tap);
    }
    if (!find_rows(g, with, places)) return false;
    next_symbols(from, with, places, g->n_lanes, number, symbols);
    take_symbols(with->symbols, symbols, ids, &values);
    if (w->has_trellis) next_states(g, ids, (int32_t)with->outlier);
    if (!w->has_rule) return true;
    EACH_QUAD {
        wholes far = values.whole[q] - g->expected.whole[q], sign = far >> 31;
        distances.real[q] = __builtin_convertvector((far ^ sign) - sign, reals);
    }
    for (size_t lane = g->n_lanes; lane < LANES; lane++) distances.one[lane] = 0;
    if (w->predicts) w->read[tap] = values;
    learn(w, g, &distances, column, tap);
    return true;
}

#define TILE 16 /* steps that are put into C order at once */

/* Writes the ids of some steps, or the patterns that they stand for. */
static void put_tile(const lanes tile[TILE], size_t n_steps, size_t n_lanes, size_t steps, size_t place, id_array ids) {
    for (size_t lane = 0; lane < n_lanes; lane++, place += steps) {
        FOR_WIDTH(ids.width, for (size_t step = 0; step < n_steps; step++) {
            put_id(ids, WIDTH, place + step, (uint32_t)tile[step].one[lane]);
        });
    }
}

static bool decode_group(walk *w, group *g, stream *from, models *with, size_t first, id_array ids) {
    size_t steps = w->columns * w->taps, number = first * steps, place = number, kept = 0;
    lanes tile[TILE];
    start_group(w, g, first);
    for (size_t column = 0; column < w->columns; column++) {
        start_column(g);
        for (size_t tap = 0; tap < w->taps; tap++, number += g->n_lanes) {
            if (!decode_step(w, g, from, with, column, tap, number, &tile[kept])) return false;
            if (++kept < TILE) continue;
            put_tile(tile, TILE, g->n_lanes, steps, place, ids);
            place += TILE;
            kept = 0;
        }
    }
    put_tile(tile, kept, g->n_lanes, steps, place, ids);
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
    if (w == NULL) return GBNN_ERROR_NO_MEMORY;
    TRY(make_walk(w, tensor, of, memory));
    if (!start_stream(&from, words, tensor->size)) return GBNN_ERROR_STREAM;
    for (size_t first = 0; first < w->rows; first += LANES) {
        if (!decode_group(w, &g, &from, with, first, ids)) return GBNN_ERROR_STREAM;
    }
    return has_ended(&from) ? GBNN_OK : GBNN_ERROR_STREAM;
}
