// The results of products, and the bias that some have.

layout(set = 1, binding = 2, std430) readonly buffer Bias { float bias[]; };
layout(set = 1, binding = 3, std430) writeonly buffer Out { float result[]; };

// Writes the sum of a row of this dispatch and a feature of these weights.
void put(uint row, uint feature, float sum) {
    if (has_bias != 0u) {
        sum += bias[base[2] + out_first + feature];
    }
    result[base[3] + row * out_cols + out_first + feature] = sum;
}
