// Causal attention of each row over its sequence's cached positions, online softmax. A workgroup computes one query head
// of one row, 128 positions at a time: first a lane for each position, then the lanes share out the words of the values.
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
#include "reduce.glsl"
#include "elements.glsl"
#include "softmax.glsl"

// What `mode` is: each row; or each that attention_rows leaves; or a part of the positions of each, for attention_join.
#define LEFT_ROWS 1u
#define PARTS 2u

shared float query[WORDS * PER_WORD];
shared float weights[LANES];
shared uint places[LANES];

float score_of(uint at) {
    float sum = 0.0;
    for (uint word = 0u; word < WORDS; word += AT_ONCE) {
        uvec4 bits = words_at(at + word);
        for (uint n = 0u; n < AT_ONCE; n++) {
            vec4 k = elements_of(bits[n], at, word + n);
            for (uint i = 0u; i < PER_WORD; i++) {
                sum += query[(word + n) * PER_WORD + i] * k[i];
            }
        }
    }
    return capped(sum);
}

void main() {
    uint row = gl_WorkGroupID.y;
    uint lane = gl_LocalInvocationID.x;
    uint rows = row_count();
    if (row >= rows || (mode == LEFT_ROWS && is_shared(row / ROWS * ROWS, rows))) {
        return;
    }
    uint table = step_table(first_row + row);
    uint end = step_position(first_row + row) + 1u;
    uint start = first_attended(end - 1u);
    if (mode == PARTS) {
        uint units = units_of_part(units_of(start, end));
        uint first = start / LANES + gl_WorkGroupID.z * units;
        if (first * LANES >= end) {
            return;
        }
        start = max(start, first * LANES);
        end = min(end, (first + units) * LANES);
    }

    uint head = gl_WorkGroupID.x / group;
    uint at = (row * heads + first_head * group + gl_WorkGroupID.x) * HEAD_DIM;
    for (uint d = lane; d < WORDS * PER_WORD; d += LANES) {
        query[d] = d < HEAD_DIM ? q[base[0] + at + d] : 0.0;
    }
    barrier();

    uint team = lane / TEAM;
    uint member = lane % TEAM;
    float sum[WORDS_EACH * PER_WORD];
    for (uint i = 0u; i < WORDS_EACH * PER_WORD; i++) {
        sum[i] = 0.0;
    }
    float largest = NEGATIVE_INFINITY;
    // Of the positions whose scores this lane computed.
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
        float keep = kept(largest, now);
        float weight = weight_of(score, now);
        weights[lane] = weight;
        largest = now;
        total = total * keep + weight;
        barrier();
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

    total = sum_of_all(total);
    float factor = total == 0.0 ? 0.0 : 1.0 / total;
    uint to = base[2] + at;
    if (mode == PARTS) {
        factor = 1.0;
        to = base[2] + part_at(gl_WorkGroupID.x, row, head_count * group, gl_WorkGroupID.z);
        if (lane == 0u) {
            result[to + HEAD_DIM] = largest;
            result[to + HEAD_DIM + 1u] = total;
        }
    }
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
                result[to + d] = all * factor;
            }
            barrier();
        }
    }
}
