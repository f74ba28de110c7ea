// Writes the rows' keys and values into the KV blocks of their sequences.
//
// The work comes in units of 64 elements of one head's key or value, 128 units a workgroup: no word holds elements or
// scales of two units.
#version 450
#extension GL_GOOGLE_include_directive : require

#define STEP_WORDS
#define PUSH uint head_dim; uint heads; uint first_head; uint head_count; uint blocks; uint pos_words;
#include "common.glsl"
#include "kv.glsl"

layout(set = 1, binding = 0, std430) readonly buffer K { float k[]; };
layout(set = 1, binding = 1, std430) readonly buffer V { float v[]; };
layout(set = 1, binding = 2, std430) writeonly buffer Kv { uint kv[]; };

const uint PART = 64u;

// Where a unit reads and writes, and its first element.
struct Unit {
    uint values;
    uint from;
    uint to;
    uint element;
};

Unit unit_of(uint number, uint row, uint block, uint slot) {
    uint parts = (head_dim + PART - 1u) / PART;
    uint head = number / (2u * parts);
    Unit unit;
    unit.values = (number / parts) % 2u;
    unit.element = (number % parts) * PART;
    // Pushed arrays may not be indexed by what differs between invocations.
    unit.from = (unit.values == 0u ? base[0] : base[1]) + (row * heads + first_head + head) * head_dim;
    unit.to = kv_position(base[2], head, unit.values, blocks * KV_BLOCK, block, slot);
    return unit;
}

float element(Unit unit, uint e) {
    if (e >= head_dim) {
        return 0.0;
    }
    return unit.values == 0u ? k[unit.from + e] : v[unit.from + e];
}

// The f16 scale of the 32 elements from `e` on, whose numbers are written. Groups are whole.
uint quantize(Unit unit, uint e) {
    float x[KV_GROUP];
    float largest = 0.0;
    bool finite = true;
    for (uint i = 0u; i < KV_GROUP; i++) {
        x[i] = unit.values == 0u ? k[unit.from + e + i] : v[unit.from + e + i];
        finite = finite && is_finite(x[i]);
        largest = max(largest, abs(x[i]));
    }
    // What is not finite makes the scale NaN, so that it is not lost.
    uint scale = finite ? float_to_half(min(largest / 127.0, 65504.0)) : 0x7e00u;
    float d = half_to_float(scale);
    bool zero = !finite || scale == 0u;
    for (uint i = 0u; i < KV_GROUP; i += 4u) {
        uint word = 0u;
        for (uint j = 0u; j < 4u; j++) {
            float quotient = zero ? 0.0 : x[i + j] / d;
            // Half away from zero.
            float whole = floor(abs(quotient));
            whole = min(whole + (abs(quotient) - whole >= 0.5 ? 1.0 : 0.0), 127.0);
            word |= (uint(int(quotient < 0.0 ? -whole : whole)) & 0xffu) << (8u * j);
        }
        kv[unit.to + (e + i) / 4u] = word;
    }
    return scale;
}

void main() {
    uint row = gl_WorkGroupID.y;
    if (row >= row_count()) {
        return;
    }
    uint position = step_position(first_row + row);
    uint block = step_words[step_table(first_row + row) + position / KV_BLOCK];
    uint slot = position % KV_BLOCK;
    uint lane = gl_LocalInvocationID.x;
    uint first = gl_WorkGroupID.x * LANES;
    uint units = head_count * 2u * ((head_dim + PART - 1u) / PART);
    units = units > first ? min(units - first, LANES) : 0u;
    if (FORMAT == KV_Q8_0) {
        if (lane < units) {
            Unit unit = unit_of(first + lane, row, block, slot);
            uint scales = 0u;
            for (uint e = 0u; e < PART && unit.element + e < head_dim; e += KV_GROUP) {
                scales |= quantize(unit, unit.element + e) << (e / KV_GROUP * 16u);
            }
            kv[unit.to + head_dim / 4u + unit.element / PART] = scales;
        }
        return;
    }
    // Word by word, so that neighbours write neighbouring words.
    uint words = PART / kv_per_word();
    for (uint n = lane; n < units * words; n += LANES) {
        Unit unit = unit_of(first + n / words, row, block, slot);
        uint e = unit.element + (n % words) * kv_per_word();
        if (e < head_dim) {
            uint word = FORMAT == KV_F32
                ? floatBitsToUint(element(unit, e))
                : float_to_half(element(unit, e)) | (float_to_half(element(unit, e + 1u)) << 16);
            kv[unit.to + e / kv_per_word()] = word;
        }
    }
}
