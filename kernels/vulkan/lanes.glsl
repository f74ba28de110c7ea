// How the lanes of matvec share out products of few rows, and join their sums.

const uint FEATURES = 8u;
const uint ROWS = 4u;
// Features of a lane, and the lanes that share them out.
const uint EACH = 2u;
const uint SHARERS = LANES * EACH / FEATURES;

layout(set = 1, binding = 2, std430) readonly buffer Bias { float bias[]; };
layout(set = 1, binding = 3, std430) writeonly buffer Out { float result[]; };

shared float sums[EACH * ROWS][LANES];

// Of those of a workgroup, the lane that this invocation is: in the order of subgroups, if they are of one size and full.
// Then lanes that follow one another are of one subgroup, or of whole ones; nothing else says which invocations are.
uint numbered() {
#ifdef SUBGROUP
    if (gl_NumSubgroups * gl_SubgroupSize == LANES) {
        return gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
    }
#endif
    return gl_LocalInvocationID.x;
}

// Joins the sums of `rows` rows from `row` on, of this lane's features, the first of which is `feature`, and writes them.
void finish(float sum[EACH * ROWS], uint lane, uint row, uint rows, uint feature) {
    // Where the sums of this lane's features begin, and how many there are of each.
    uint sharer = lane % SHARERS;
    uint from = lane - sharer;
    uint count = 1u;
#ifdef SUBGROUP
    if (gl_NumSubgroups * gl_SubgroupSize == LANES) {
        // As many lanes share out two features as a subgroup has, or several subgroups have, or some of one.
        uint within = max(gl_SubgroupSize / SHARERS, 1u);
        count = max(SHARERS / gl_SubgroupSize, 1u);
        from = lane / SHARERS * count;
        for (uint i = 0u; i < EACH * ROWS; i++) {
            if (i % ROWS < rows) {
                for (uint t = 0u; t < within; t++) {
                    float all = subgroupAdd(lane / SHARERS % within == t ? sum[i] : 0.0);
                    if (subgroupElect()) {
                        sums[i][gl_SubgroupID * within + t] = all;
                    }
                }
            }
        }
        barrier();
    } else
#endif
    {
        for (uint i = 0u; i < EACH * ROWS; i++) {
            sums[i][lane] = sum[i];
        }
        barrier();
        for (uint sharers = SHARERS / 2u; sharers > 0u; sharers /= 2u) {
            if (sharer < sharers) {
                for (uint i = 0u; i < EACH * ROWS; i++) {
                    if (i % ROWS < rows) {
                        sums[i][lane] += sums[i][lane + sharers];
                    }
                }
            }
            barrier();
        }
    }
    // One sharer for each feature and row.
    uint r = sharer % ROWS;
    feature += sharer / ROWS;
    if (sharer < EACH * ROWS && r < rows && feature < features) {
        float y = 0.0;
        for (uint s = 0u; s < count; s++) {
            y += sums[sharer][from + s];
        }
        if (has_bias != 0u) {
            y += bias[base[2] + out_first + feature];
        }
        result[base[3] + (row + r) * out_cols + out_first + feature] = y;
    }
}
