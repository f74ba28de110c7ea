// Causal attention of each row over its sequence's cached positions, online softmax. A workgroup computes one query head
// of one row, 128 positions at a time: first a lane for each position, then the lanes share out the words of the values.
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

shared float query[WORDS * PER_WORD];
shared float weights[LANES];
shared uint places[LANES];
shared float scratch[LANES];

float score_of(uint at) {
    float sum = 0.0;
    for (uint word = 0u; word < WORDS; word++) {
        vec4 k = elements(at, word);
        for (uint i = 0u; i < PER_WORD; i++) {
            sum += query[word * PER_WORD + i] * k[i];
        }
    }
    return capped(sum);
}

float largest_of_all(float mine) {
    uint lane = gl_LocalInvocationID.x;
    scratch[lane] = mine;
    barrier();
    for (uint half_lanes = LANES / 2u; half_lanes > 0u; half_lanes /= 2u) {
        if (lane < half_lanes) {
            scratch[lane] = max(scratch[lane], scratch[lane + half_lanes]);
        }
        barrier();
    }
    float largest = scratch[0];
    barrier();
    return largest;
}

float sum_of_all(float mine) {
    uint lane = gl_LocalInvocationID.x;
    scratch[lane] = mine;
    barrier();
    for (uint half_lanes = LANES / 2u; half_lanes > 0u; half_lanes /= 2u) {
        if (lane < half_lanes) {
            scratch[lane] += scratch[lane + half_lanes];
        }
        barrier();
    }
    float sum = scratch[0];
    barrier();
    return sum;
}

void main() {
    uint row = gl_WorkGroupID.y;
    uint lane = gl_LocalInvocationID.x;
    if (row >= row_count()) {
        return;
    }
    uint head = gl_WorkGroupID.x / group;
    uint at = (row * heads + first_head * group + gl_WorkGroupID.x) * HEAD_DIM;
    for (uint d = lane; d < WORDS * PER_WORD; d += LANES) {
        query[d] = d < HEAD_DIM ? q[base[0] + at + d] : 0.0;
    }
    barrier();

    uint table = step_table(first_row + row);
    uint end = step_position(first_row + row) + 1u;
    uint start = first_attended(end - 1u);

    uint team = lane / TEAM;
    uint member = lane % TEAM;
    float sum[WORDS_EACH * PER_WORD];
    for (uint i = 0u; i < WORDS_EACH * PER_WORD; i++) {
        sum[i] = 0.0;
    }
    float largest = NEGATIVE_INFINITY;
    float total = 0.0;
    // Aligned, so that the order of sums depends on the positions alone.
    for (uint chunk = start / LANES * LANES; chunk < end; chunk += LANES) {
        uint position = chunk + lane;
        float score = NEGATIVE_INFINITY;
        if (position >= start && position < end) {
            uint block = step_words[table + position / KV_BLOCK];
            uint slot = position % KV_BLOCK;
            score = score_of(kv_position(base[1], head, 0u, blocks * KV_BLOCK, block, slot));
            places[lane] = kv_position(base[1], head, 1u, blocks * KV_BLOCK, block, slot);
        }
        float now = max(largest, largest_of_all(score));
        float weight = weight_of(score, now);
        // As long as every score is negative infinity, there is nothing to keep less of.
        float keep = now == NEGATIVE_INFINITY ? 1.0 : exp(largest - now);
        weights[lane] = weight;
        largest = now;
        total = total * keep + sum_of_all(weight);
        for (uint i = 0u; i < WORDS_EACH * PER_WORD; i++) {
            sum[i] *= keep;
        }
        // Only positions attended to: what others hold may be NaN.
        uint from = max(chunk, start) - chunk;
        uint to = min(chunk + LANES, end) - chunk;
        for (uint p = team; p < to; p += TEAMS) {
            if (p < from) {
                continue;
            }
            for (uint i = 0u; i < WORDS_EACH; i++) {
                uint word = member + TEAM * i;
                if (word < WORDS) {
                    vec4 v = elements(places[p], word);
                    for (uint j = 0u; j < PER_WORD; j++) {
                        sum[i * PER_WORD + j] += weights[p] * v[j];
                    }
                }
            }
        }
        // The weights are read before the next are written.
        barrier();
    }

    float inverse = total == 0.0 ? 0.0 : 1.0 / total;
    for (uint i = 0u; i < WORDS_EACH; i++) {
        for (uint j = 0u; j < PER_WORD; j++) {
            scratch[lane] = sum[i * PER_WORD + j];
            barrier();
            uint d = (member + TEAM * i) * PER_WORD + j;
            if (team == 0u && d < HEAD_DIM) {
                float all = scratch[member];
                for (uint t = 1u; t < TEAMS; t++) {
                    all += scratch[member + TEAM * t];
                }
                result[base[2] + at + d] = all * inverse;
            }
            barrier();
        }
    }
}
