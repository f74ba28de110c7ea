// As attention.comp, for many rows: a workgroup computes one query head of 8 rows, and rows of the same sequence that follow
// one another read its keys and values together. Rows of too many sequences are left to attention.
#version 450
#pragma variants(SUBGROUP)
#extension GL_GOOGLE_include_directive : require
#ifdef SUBGROUP
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif

#define STEP_WORDS
#define PUSH uint head_dim; uint heads; uint first_head; uint head_count; uint blocks; uint pos_words; uint group; \
    float scale; uint window; float softcap; uint most_parts; uint mode;
#include "common.glsl"
#include "kv.glsl"
#include "elements.glsl"
#include "softmax.glsl"

// Teams share out the rows; within one, the words of a value.
const uint ROWS_EACH = ROWS / TEAMS;

shared float query[ROWS * WORDS * PER_WORD];
// Of each row: its scores, then their weights; and in between, what lanes or subgroups found of them.
shared float weights[ROWS * LANES];
shared uint places[LANES];
shared float keeps[ROWS];
shared float totals[ROWS];

#ifdef SUBGROUP
// Of all rows, the largest score so far and this lane's share of the weights' sum.
float largest[ROWS];
float total[ROWS];

// From scores to weights. No lane has the same rows or positions twice.
void weigh(float score[ROWS]) {
    uint lane = gl_LocalInvocationID.x;
    for (uint r = 0u; r < ROWS; r++) {
        float most = subgroupMax(score[r]);
        if (subgroupElect()) {
            weights[r * LANES + gl_SubgroupID] = most;
        }
    }
    barrier();
    float keep[ROWS];
    for (uint r = 0u; r < ROWS; r++) {
        float now = largest[r];
        for (uint s = 0u; s < gl_NumSubgroups; s++) {
            now = max(now, weights[r * LANES + s]);
        }
        keep[r] = kept(largest[r], now);
        largest[r] = now;
    }
    barrier();
    for (uint r = 0u; r < ROWS; r++) {
        float weight = weight_of(score[r], largest[r]);
        weights[r * LANES + lane] = weight;
        total[r] = total[r] * keep[r] + weight;
        if (lane == 0u) {
            keeps[r] = keep[r];
        }
    }
    barrier();
}

// Writes the sums of the rows' weights.
void add_up() {
    for (uint r = 0u; r < ROWS; r++) {
        float sum = subgroupAdd(total[r]);
        if (subgroupElect()) {
            weights[r * LANES + gl_SubgroupID] = sum;
        }
    }
    barrier();
    uint r = gl_LocalInvocationID.x;
    if (r < ROWS) {
        float sum = 0.0;
        for (uint s = 0u; s < gl_NumSubgroups; s++) {
            sum += weights[r * LANES + s];
        }
        totals[r] = sum;
    }
    barrier();
}

void begin() {
    for (uint r = 0u; r < ROWS; r++) {
        largest[r] = NEGATIVE_INFINITY;
        total[r] = 0.0;
    }
}
#else
// Lanes that normalise a row's scores.
const uint SHARERS = LANES / ROWS;

shared float scratch[LANES];

// Of the row whose scores this lane helps normalise, the largest so far and this lane's share of the weights' sum.
float largest;
float total;

void weigh(float score[ROWS]) {
    uint lane = gl_LocalInvocationID.x;
    uint mine = lane / SHARERS;
    uint sharer = lane % SHARERS;
    for (uint r = 0u; r < ROWS; r++) {
        weights[r * LANES + lane] = score[r];
    }
    barrier();
    float now = NEGATIVE_INFINITY;
    for (uint i = sharer; i < LANES; i += SHARERS) {
        now = max(now, weights[mine * LANES + i]);
    }
    scratch[lane] = now;
    barrier();
    for (uint sharers = SHARERS / 2u; sharers > 0u; sharers /= 2u) {
        if (sharer < sharers) {
            scratch[lane] = max(scratch[lane], scratch[lane + sharers]);
        }
        barrier();
    }
    now = max(largest, scratch[lane - sharer]);
    float added = 0.0;
    for (uint i = sharer; i < LANES; i += SHARERS) {
        float weight = weight_of(weights[mine * LANES + i], now);
        weights[mine * LANES + i] = weight;
        added += weight;
    }
    float keep = kept(largest, now);
    if (sharer == 0u) {
        keeps[mine] = keep;
    }
    total = total * keep + added;
    largest = now;
    barrier();
}

void add_up() {
    uint lane = gl_LocalInvocationID.x;
    uint sharer = lane % SHARERS;
    scratch[lane] = total;
    barrier();
    for (uint sharers = SHARERS / 2u; sharers > 0u; sharers /= 2u) {
        if (sharer < sharers) {
            scratch[lane] += scratch[lane + sharers];
        }
        barrier();
    }
    if (sharer == 0u) {
        totals[lane / SHARERS] = scratch[lane];
    }
    barrier();
}

void begin() {
    largest = NEGATIVE_INFINITY;
    total = 0.0;
}
#endif

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint row = gl_WorkGroupID.y * ROWS;
    uint rows = row_count();
    if (row >= rows || !is_shared(row, rows)) {
        return;
    }
    rows = min(rows - row, ROWS);
    uint head = gl_WorkGroupID.x / group;
    uint at = base[0] + (row * heads + first_head * group + gl_WorkGroupID.x) * HEAD_DIM;
    for (uint i = lane; i < ROWS * WORDS * PER_WORD; i += LANES) {
        uint r = i / (WORDS * PER_WORD);
        uint d = i % (WORDS * PER_WORD);
        query[i] = r < rows && d < HEAD_DIM ? q[at + r * heads * HEAD_DIM + d] : 0.0;
    }
    barrier();

    uint team = lane / TEAM;
    uint member = lane % TEAM;
    float sum[ROWS_EACH * WORDS_EACH * PER_WORD];
    for (uint i = 0u; i < ROWS_EACH * WORDS_EACH * PER_WORD; i++) {
        sum[i] = 0.0;
    }
    begin();
    for (uint first = 0u, last = 0u; first < rows; first = last) {
        // Rows `first` to before `last` are of one sequence.
        uint table = step_table(first_row + row + first);
        uint start = 0xffffffffu;
        uint end = 0u;
        for (last = first; last < rows && step_table(first_row + row + last) == table; last++) {
            uint position = step_position(first_row + row + last);
            start = min(start, first_attended(position));
            end = max(end, position + 1u);
        }
        for (uint chunk = start / LANES * LANES; chunk < end; chunk += LANES) {
            uint position = chunk + lane;
            float score[ROWS];
            for (uint r = 0u; r < ROWS; r++) {
                score[r] = 0.0;
            }
            bool read = position >= start && position < end;
            if (read) {
                uint block = step_words[table + position / KV_BLOCK];
                uint slot = position % KV_BLOCK;
                uint keys = kv_position(base[1], head, 0u, blocks * KV_BLOCK, block, slot);
                places[lane] = kv_position(base[1], head, 1u, blocks * KV_BLOCK, block, slot);
                for (uint word = 0u; word < WORDS; word += AT_ONCE) {
                    uvec4 bits = words_at(keys + word);
                    for (uint n = 0u; n < AT_ONCE; n++) {
                        vec4 k = elements_of(bits[n], keys, word + n);
                        for (uint r = 0u; r < ROWS; r++) {
                            for (uint i = 0u; i < PER_WORD; i++) {
                                score[r] += query[(r * WORDS + word + n) * PER_WORD + i] * k[i];
                            }
                        }
                    }
                }
            }
            for (uint r = 0u; r < ROWS; r++) {
                bool attended = false;
                if (read && r >= first && r < last) {
                    uint of_row = step_position(first_row + row + r);
                    attended = position >= first_attended(of_row) && position <= of_row;
                }
                score[r] = attended ? capped(score[r]) : NEGATIVE_INFINITY;
            }
            weigh(score);

            for (uint i = 0u; i < ROWS_EACH; i++) {
                for (uint j = 0u; j < WORDS_EACH * PER_WORD; j++) {
                    sum[i * WORDS_EACH * PER_WORD + j] *= keeps[team + TEAMS * i];
                }
            }
            uint to = min(chunk + LANES, end) - chunk;
            for (uint p = max(chunk, start) - chunk; p < to; p++) {
                for (uint w = 0u; w < WORDS_EACH; w++) {
                    uint word = member + TEAM * w;
                    if (word < WORDS) {
                        vec4 v = elements(places[p], word);
                        for (uint i = 0u; i < ROWS_EACH; i++) {
                            float weight = weights[(team + TEAMS * i) * LANES + p];
                            // What a row does not attend to may be NaN.
                            if (weight != 0.0) {
                                for (uint j = 0u; j < PER_WORD; j++) {
                                    sum[(i * WORDS_EACH + w) * PER_WORD + j] += weight * v[j];
                                }
                            }
                        }
                    }
                }
            }
            barrier();
        }
    }

    add_up();
    for (uint i = 0u; i < ROWS_EACH; i++) {
        uint r = team + TEAMS * i;
        float inverse = totals[r] == 0.0 ? 0.0 : 1.0 / totals[r];
        for (uint w = 0u; w < WORDS_EACH; w++) {
            for (uint j = 0u; j < PER_WORD; j++) {
                uint d = (member + TEAM * w) * PER_WORD + j;
                if (r < rows && d < HEAD_DIM) {
                    result[base[2] + ((row + r) * heads + first_head * group + gl_WorkGroupID.x) * HEAD_DIM + d] =
                        sum[(i * WORDS_EACH + w) * PER_WORD + j] * inverse;
                }
            }
        }
    }
}
