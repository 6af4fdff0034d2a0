// Where gemm_int4.cu's sums go: which weight rows a block has, and what each epilogue makes of the
// sums of a fragment.
#pragma once

// Output column of fragment row r of a unit's warp `quarter`. SWIGLU: a warp has 8 gate rows and,
// as r + 8, the up rows that go with them; for int4 order, a unit is columns 8 u .. 8 u + 7 of each
// lane t = quarter, which are neighbours there.
DEVICE int output_column(int unit, int quarter, int r) {
    if (EPILOGUE != EPILOGUE_SWIGLU) return unit * 64 + 16 * quarter + r;
    return OUT_INT4 ? unit / 4 * 128 + 32 * quarter + unit % 4 * 8 + r
                    : unit * 32 + 8 * quarter + r;
}

// Weight row of row `i` of the block. One beyond the tensor becomes one that exists: what it gives
// is not stored.
DEVICE int weight_row(int first_unit, int i) {
    int unit = first_unit + i / 64, quarter = i % 64 / 16;
#if EPILOGUE == EPILOGUE_SWIGLU
    return min(output_column(unit, quarter, i % 8), INTERMEDIATE - 1) +
           (i % 16 < 8 ? 0 : INTERMEDIATE);
#else
    return min(output_column(unit, quarter, i % 16), ROWS - 1);
#endif
}

// ---- output of one block of 8 tokens: v = rows r (0, 1) and r + 8 (2, 3), tokens 2t, 2t + 1 ----

struct lane_output {
    // The warpgroup's [TILE_M][OUT_PITCH] in shared memory, at the lane's token and column.
    u16 *staged;
    float *residual; // at the lane's token 0 of the tile, row r
    int tokens;      // of the tile that exist, less the lane's 2t
    int row;         // output column of fragment row r
};

#if ADDS
// What the block's outputs are added to.
DEVICE float4 load_residual(const lane_output &lane, int block) {
    const float *p = lane.residual + (u64)(8 * block) * ROWS;
    bool first = 8 * block < lane.tokens, second = 8 * block + 1 < lane.tokens;
    bool low = lane.row < ROWS, high = lane.row + 8 < ROWS;
    return make_float4(first && low ? p[0] : 0.0f, second && low ? p[ROWS] : 0.0f,
                       first && high ? p[8] : 0.0f, second && high ? p[ROWS + 8] : 0.0f);
}
#endif

DEVICE void emit(const lane_output &lane, int block, float4 v, float4 residual) {
#if EPILOGUE == EPILOGUE_ADD
    float *p = lane.residual + (u64)(8 * block) * ROWS;
    bool first = 8 * block < lane.tokens, second = 8 * block + 1 < lane.tokens;
    bool low = lane.row < ROWS, high = lane.row + 8 < ROWS;
    if (ADDS)
        v.x = residual.x + v.x, v.y = residual.y + v.y, v.z = residual.z + v.z,
            v.w = residual.w + v.w;
    if (first && low) p[0] = v.x;
    if (second && low) p[ROWS] = v.y;
    if (first && high) p[8] = v.z;
    if (second && high) p[ROWS + 8] = v.w;
#elif EPILOGUE == EPILOGUE_SWIGLU
    u16 *p = lane.staged + 8 * block * OUT_PITCH;
    bool valid = lane.row < INTERMEDIATE;
    p[0] = valid ? bf16_of(v.x / (1.0f + __expf(-gate_exponent(v.x))) * v.z) : 0;
    p[OUT_PITCH] = valid ? bf16_of(v.y / (1.0f + __expf(-gate_exponent(v.y))) * v.w) : 0;
#else
    u16 *p = lane.staged + 8 * block * OUT_PITCH;
    p[0] = bf16_of(v.x);
    p[OUT_PITCH] = bf16_of(v.y);
    p[8] = bf16_of(v.z);
    p[OUT_PITCH + 8] = bf16_of(v.w);
#endif
}
