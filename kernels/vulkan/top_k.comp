// The largest logits of a row, as many as are wanted, with their ids: no numbers first, then larger before smaller, and
// of equals the one with the lower id. Each workgroup leaves the largest of one part of a row (format 0); the second
// dispatch finds the largest of the row among those of all its parts (format 1).
#version 450
#extension GL_GOOGLE_include_directive : require

#define STEP_WORDS
// Columns of a row; columns of a part, but for the last; parts of a row; entries a list has room for, at most LANES.
#define PUSH uint cols; uint part; uint parts; uint room;
#include "common.glsl"
#include "wanted.glsl"

// Logits, or entries of two words.
layout(set = 1, binding = 0, std430) readonly buffer X { uint x[]; };
// Entries: the id, and the logit bit for bit.
layout(set = 1, binding = 1, std430) writeonly buffer Out { uint result[]; };

// In place of an id, where a part has fewer columns than are wanted.
const uint NOTHING = 0xffffffffu;
const uint BINS = 2u * LANES;

shared uint bins[BINS];
// Entries in this pair of bins and all above.
shared uint sums[LANES];
// The bin to go on with, what is above it, and what is in it.
shared uint picked;
shared uint above;
shared uint inside;
shared uint found;
shared uint ids[LANES];
shared uint values[LANES];

// Larger for what comes first, whatever the ids; in integers, for drivers may flush what is subnormal.
uint rank_of(uint bits) {
    uint magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return 0xffffffffu;
    }
    if (magnitude == 0u) {
        return 0x80000000u;
    }
    return bits == magnitude ? bits | 0x80000000u : ~bits;
}

// The same with the ids: no two keys are equal.
uvec2 key_of(uvec2 entry) {
    return entry.x == NOTHING ? uvec2(0u) : uvec2(rank_of(entry.y), ~entry.x);
}

// An entry of what this workgroup looks through.
uvec2 entry_at(uint first, uint i) {
    if (FORMAT == 0u) {
        return uvec2(first + i - gl_WorkGroupID.y * cols, x[base[0] + first + i]);
    }
    uint at = base[0] + 2u * (first + i);
    return uvec2(x[at], x[at + 1u]);
}

void put(uint at, uint id, uint bits) {
    result[base[1] + 2u * at] = id;
    result[base[1] + 2u * at + 1u] = bits;
}

void main() {
    uint row = gl_WorkGroupID.y;
    uint lane = gl_LocalInvocationID.x;
    if (row >= row_count()) {
        return;
    }
    uint k = min(step_wanted(first_row + row), room);
    if (k == 0u) {
        return;
    }
    uint first, count, to;
    if (FORMAT == 0u) {
        uint begin = gl_WorkGroupID.x * part;
        first = row * cols + begin;
        count = min(part, cols - begin);
        to = row * parts * room + gl_WorkGroupID.x * k;
    } else {
        first = row * parts * room;
        count = parts * k;
        to = row * room;
    }

    // Those wanted are those whose keys reach `least` where `mask` has ones. Digit by digit, from the highest: of those
    // that agree with `least` so far, `left` are wanted.
    uint wanted = min(k, count);
    uint left = wanted;
    uvec2 mask = uvec2(0u);
    uvec2 least = uvec2(0u);
    if (lane == 0u) {
        found = 0u;
    }
    if (wanted < count) {
        for (uint digit = 0u; digit < 8u; ++digit) {
            uint word = digit / 4u;
            uint shift = 24u - 8u * (digit % 4u);
            bins[lane] = 0u;
            bins[lane + LANES] = 0u;
            barrier();
            for (uint i = lane; i < count; i += LANES) {
                uvec2 key = key_of(entry_at(first, i));
                if (all(equal(key & mask, least))) {
                    atomicAdd(bins[((word == 0u ? key.x : key.y) >> shift) & 255u], 1u);
                }
            }
            barrier();
            uint low = bins[2u * lane];
            uint high = bins[2u * lane + 1u];
            sums[lane] = low + high;
            barrier();
            for (uint step = 1u; step < LANES; step *= 2u) {
                uint more = lane + step < LANES ? sums[lane + step] : 0u;
                barrier();
                sums[lane] += more;
                barrier();
            }
            uint upper = sums[lane] - low - high;
            if (upper < left && left <= upper + high) {
                picked = 2u * lane + 1u;
                above = upper;
                inside = high;
            } else if (upper + high < left && left <= sums[lane]) {
                picked = 2u * lane;
                above = upper + high;
                inside = low;
            }
            barrier();
            left -= above;
            if (word == 0u) {
                mask.x |= 255u << shift;
                least.x |= picked << shift;
            } else {
                mask.y |= 255u << shift;
                least.y |= picked << shift;
            }
            if (left == inside) {
                break;
            }
        }
    }
    barrier();
    for (uint i = lane; i < count; i += LANES) {
        uvec2 entry = entry_at(first, i);
        uvec2 key = key_of(entry) & mask;
        if (key.x > least.x || (key.x == least.x && key.y >= least.y)) {
            uint at = atomicAdd(found, 1u);
            if (at < LANES) {
                ids[at] = entry.x;
                values[at] = entry.y;
            }
        }
    }
    barrier();
    if (lane < wanted) {
        uvec2 own = key_of(uvec2(ids[lane], values[lane]));
        uint place = 0u;
        for (uint i = 0u; i < wanted; ++i) {
            uvec2 other = key_of(uvec2(ids[i], values[i]));
            if (other.x > own.x || (other.x == own.x && other.y > own.y)) {
                ++place;
            }
        }
        put(to + place, ids[lane], values[lane]);
    } else if (lane < k) {
        put(to + lane, NOTHING, 0u);
    }
}
