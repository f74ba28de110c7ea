// As attention.comp, for many rows: a workgroup computes one query head of 8 rows, and rows of the same sequence that follow
// one another read its keys and values together.
#version 450
#extension GL_GOOGLE_include_directive : require

#define STEP_WORDS
#define PUSH uint head_dim; uint heads; uint first_head; uint head_count; uint blocks; uint pos_words; uint group; \
    float scale; uint window; float softcap;
#include "common.glsl"
#include "kv.glsl"

// The same as head_dim, known when the pipeline is made.
layout(constant_id = 1) const uint HEAD_DIM = 64u;

layout(set = 1, binding = 0, std430) readonly buffer Q { float q[]; };
layout(set = 1, binding = 1, std430) readonly buffer Kv { uint kv[]; };
layout(set = 1, binding = 2, std430) writeonly buffer Out { float result[]; };

#include "elements.glsl"

const uint ROWS = 8u;
// Lanes that normalise a row's scores.
const uint SHARERS = LANES / ROWS;
// Teams share out the rows; within one, the words of a value.
const uint ROWS_EACH = ROWS / TEAMS;

shared float query[ROWS * WORDS * PER_WORD];
shared float weights[ROWS * LANES];
shared uint places[LANES];
shared float scratch[LANES];
shared float keeps[ROWS];
shared float totals[ROWS];

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint row = gl_WorkGroupID.y * ROWS;
    uint rows = row_count();
    if (row >= rows) {
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
    // Of the row whose scores this lane helps normalise.
    uint mine = lane / SHARERS;
    uint sharer = lane % SHARERS;
    float largest = NEGATIVE_INFINITY;
    float total = 0.0;

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
                for (uint word = 0u; word < WORDS; word++) {
                    vec4 k = elements(keys, word);
                    for (uint r = 0u; r < ROWS; r++) {
                        for (uint i = 0u; i < PER_WORD; i++) {
                            score[r] += query[(r * WORDS + word) * PER_WORD + i] * k[i];
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
                weights[r * LANES + lane] = attended ? capped(score[r]) : NEGATIVE_INFINITY;
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
            barrier();
            float added = 0.0;
            for (uint i = sharer; i < LANES; i += SHARERS) {
                float weight = weight_of(weights[mine * LANES + i], now);
                weights[mine * LANES + i] = weight;
                added += weight;
            }
            scratch[lane] = added;
            // As long as every score is negative infinity, there is nothing to keep less of.
            float keep = now == NEGATIVE_INFINITY ? 1.0 : exp(largest - now);
            if (sharer == 0u) {
                keeps[mine] = keep;
            }
            barrier();
            for (uint sharers = SHARERS / 2u; sharers > 0u; sharers /= 2u) {
                if (sharer < sharers) {
                    scratch[lane] += scratch[lane + sharers];
                }
                barrier();
            }
            total = total * keep + scratch[lane - sharer];
            largest = now;

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

    if (sharer == 0u) {
        totals[mine] = total;
    }
    barrier();
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
