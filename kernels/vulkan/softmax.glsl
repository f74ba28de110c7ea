// What attention and attention_join share: the weights of scores, and how a row's positions are divided into parts.
//
// A part is whole units of 128 positions. How many depends on nothing but the row's positions and what the plan allows,
// so that the same row gives the same bits in any company.

#define NEGATIVE_INFINITY uintBitsToFloat(0xff800000u)

// The first position that a row at `position` attends to.
uint first_attended(uint position) { return window != 0u && position >= window ? position + 1u - window : 0u; }

// The weight of a score; none, where nothing is attended to.
float weight_of(float score, float largest) { return score == NEGATIVE_INFINITY ? 0.0 : exp(score - largest); }

// What is kept of the sums so far, when the largest score has grown. As long as every score is negative infinity, there
// is nothing to keep less of.
float kept(float before, float now) { return before == now ? 1.0 : exp(before - now); }

// Units of a part, at least.
const uint LEAST_UNITS = 2u;

// Units of each part of a row with so many.
uint units_of_part(uint units) { return max((units + most_parts - 1u) / most_parts, LEAST_UNITS); }

// Units of a row that attends to the positions from `start` to before `end`.
uint units_of(uint start, uint end) { return (end - 1u) / LANES - start / LANES + 1u; }

// Where a part of a row's head lies among the parts: HEAD_DIM sums, the largest score, and the sum of the weights.
uint part_at(uint column, uint row, uint columns, uint part) {
    return ((row * columns + column) * most_parts + part) * (HEAD_DIM + 2u);
}
