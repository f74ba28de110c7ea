// Sums and maxima over the lanes of a workgroup.
//
// With SUBGROUP, each subgroup reduces what its lanes have, and each lane goes through what the subgroups found. Nothing
// is taken for granted about which lanes a subgroup has, how many, or whether all subgroups have as many.

// One float for each lane or subgroup; whoever includes this may use it between reductions.
shared float scratch[LANES];

float largest_of_all(float mine) {
#ifdef SUBGROUP
    float largest = subgroupMax(mine);
    if (subgroupElect()) {
        scratch[gl_SubgroupID] = largest;
    }
    barrier();
    for (uint s = 0u; s < gl_NumSubgroups; s++) {
        largest = max(largest, scratch[s]);
    }
#else
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
#endif
    barrier();
    return largest;
}

float sum_of_all(float mine) {
#ifdef SUBGROUP
    float sum = subgroupAdd(mine);
    if (subgroupElect()) {
        scratch[gl_SubgroupID] = sum;
    }
    barrier();
    sum = scratch[0];
    for (uint s = 1u; s < gl_NumSubgroups; s++) {
        sum += scratch[s];
    }
#else
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
#endif
    barrier();
    return sum;
}
