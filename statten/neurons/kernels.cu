// The GPU's side of recurrence.h, compiled by NVRTC through cupy_backend.py, once per number of timesteps and set of choices:
//   STEPS, LANES        timesteps; neighbouring neurons of a thread
//   STORAGE, SPIKES     types of the input and of the spikes
//   SOFT, FULL, LEARN   as in `Choices`
//   REPLAY              x has one frame, which is the input of every step
//   AFFINE              x scale[c] + shift[c] is the neuron's input; the channels are the innermost axis, LANES divides C
//   COUNT               spikes are counted
// A thread takes the groups thread, thread + threads, ...: with AFFINE `threads` is such that they have the same channels. What
// is summed goes to a place of the thread's own, so that results do not depend on the order in which threads run.
#include "recurrence.h"

using namespace statten;

typedef STORAGE S;
typedef SPIKES O;
typedef MembraneOf<S>::type M;

#define STREAM (STEPS > 16)  // frames are read when they are needed; else all at once, which keeps more reads in flight

// Keeps the compiler from reading all frames early after all, which would take the registers of the membranes.
#ifdef __CUDACC__
#define HERE asm volatile("" ::: "memory")
#else
#define HERE
#endif

template <class V> struct alignas(sizeof(V) * LANES < 16 ? sizeof(V) * LANES : 16) Pack { V v[LANES]; };

// Every byte is read once: no line of the cache need be kept for it. Writes stay, the next layer reads them.
template <class V> INLINE Pack<V> read(const V* from) {
    Pack<V> pack;
#ifdef __CUDACC__
    if constexpr (sizeof(pack) % 16 == 0) {
        UNROLL for (int i = 0; i < int(sizeof(pack) / 16); ++i) ((uint4*)&pack)[i] = __ldcs((const uint4*)from + i);
    } else if constexpr (sizeof(pack) == 8) {
        *(uint2*)&pack = __ldcs((const uint2*)from);
    } else if constexpr (sizeof(pack) == 4) {
        *(unsigned*)&pack = __ldcs((const unsigned*)from);
    } else {
        *(unsigned short*)&pack = __ldcs((const unsigned short*)from);
    }
#else
    std::memcpy(&pack, from, sizeof(pack));
#endif
    return pack;
}

template <class V> INLINE void write(V* to, const Pack<V>& pack) {
#ifdef __CUDACC__
    if constexpr (sizeof(pack) % 16 == 0) {
        UNROLL for (int i = 0; i < int(sizeof(pack) / 16); ++i) ((uint4*)to)[i] = ((const uint4*)&pack)[i];
    } else if constexpr (sizeof(pack) == 8) {
        *(uint2*)to = *(const uint2*)&pack;
    } else if constexpr (sizeof(pack) == 4) {
        *(unsigned*)to = *(const unsigned*)&pack;
    } else {
        *(unsigned short*)to = *(const unsigned short*)&pack;
    }
#else
    std::memcpy(to, &pack, sizeof(pack));
#endif
}

template <class V, bool ONCE> struct Input {
    const V* x;
    int64_t step;
    Pack<V> held[ONCE || STREAM ? 1 : STEPS];
    INLINE_MEMBER Input(const V* from, int64_t stride) : x(from), step(stride) {
        if (ONCE) held[0] = read(x);
        else if (!STREAM) UNROLL for (int t = 0; t < STEPS; ++t) held[t] = read(x + t * step);
    }
    INLINE_MEMBER void fetch(int t) {
        if (ONCE || !STREAM) return;
        HERE;
        held[0] = read(x + t * step);
    }
    INLINE_MEMBER M at(int t, int k) const { return widen(held[ONCE || STREAM ? 0 : t].v[k]); }
};

struct Channels {
    M scale[LANES], shift[LANES], mean[LANES];
    INLINE_MEMBER Channels(const M* values, int first, int channels) {
        if (values == nullptr) return;
        UNROLL for (int k = 0; k < LANES; ++k) {
            scale[k] = values[first + k], shift[k] = values[channels + first + k], mean[k] = values[2 * channels + first + k];
        }
    }
};

struct NeuronInput : Input<S, REPLAY> {
    const Channels& channels;
    INLINE_MEMBER NeuronInput(const S* from, int64_t stride, const Channels& c) : Input<S, REPLAY>(from, stride), channels(c) {}
    INLINE_MEMBER M raw(int t, int k) const { return Input<S, REPLAY>::at(t, k); }
    INLINE_MEMBER M at(int t, int k) const {
        return AFFINE ? raw(t, k) * channels.scale[k] + channels.shift[k] : raw(t, k);
    }
};

struct SpikeOutput {
    O* out;
    int64_t step;
    int count;
    Pack<O> pack;
    INLINE_MEMBER void put(int, int k, M fired) {
        narrow(fired, pack.v[k]);
        if (COUNT) count += fired > M(0);
    }
    INLINE_MEMBER void flush(int t) { write(out + t * step, pack); }
};

struct GradientOutput {
    S* out;
    int64_t step;
    const NeuronInput& x;
    M *g, *gx, total[LANES];
    Pack<S> pack;
    INLINE_MEMBER void put(int t, int k, M value) {
        if (REPLAY) total[k] += value;
        else emit(t, k, value);
    }
    INLINE_MEMBER void flush(int t) {
        if (!REPLAY) write(out + t * step, pack);
    }
    INLINE_MEMBER void emit(int t, int k, M value) {
        narrow(value, pack.v[k]);
        if (AFFINE) g[k] += value, gx[k] += value * (x.raw(t, k) - x.channels.mean[k]);
    }
};

// A group's first value: in x, whose rows of `row_groups` groups may have gaps between them, and in what has none.
struct Place { int64_t in, out; };
INLINE Place place(int64_t group, int64_t groups, int64_t row_groups, int64_t x_row) {
    int64_t row = row_groups == groups ? 0 : group / row_groups;
    return {row * x_row + (group - row * row_groups) * LANES, group * LANES};
}

extern "C" __global__ void __launch_bounds__(256) lif_forward(
    const S* __restrict__ x, O* __restrict__ spikes, const M* __restrict__ channel_values, int* __restrict__ counts,
    const M* __restrict__ learned_inv_tau, int64_t groups, int64_t threads, int64_t row_groups, int64_t x_step, int64_t x_row,
    int channels, M inv_tau, M v_threshold, M v_reset, M alpha) {
    const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (thread >= threads) return;
    const Neuron<M> n{LEARN ? *learned_inv_tau : inv_tau, v_threshold, v_reset, alpha};
    const Channels affine(AFFINE ? channel_values : nullptr, AFFINE ? int(thread * LANES % channels) : 0, channels);
    int count = 0;
    for (int64_t group = thread; group < groups; group += threads) {
        const Place at = place(group, groups, row_groups, x_row);
        NeuronInput input(x + at.in, x_step, affine);
        SpikeOutput output{spikes + at.out, groups * LANES, 0, {}};
        forward<LANES>(input, output, STEPS, LANES, {SOFT, FULL, LEARN}, n);
        count += output.count;
    }
    if (COUNT) counts[thread] = count;
}

extern "C" __global__ void __launch_bounds__(256) lif_backward(
    const S* __restrict__ x, const O* __restrict__ grad, S* __restrict__ grad_x, const M* __restrict__ channel_values,
    M* __restrict__ sums, M* __restrict__ learnt, const M* __restrict__ learned_inv_tau, int64_t groups, int64_t threads,
    int64_t row_groups, int64_t x_step, int64_t x_row, int channels, M inv_tau, M v_threshold, M v_reset, M alpha) {
    const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (thread >= threads) return;
    const Neuron<M> n{LEARN ? *learned_inv_tau : inv_tau, v_threshold, v_reset, alpha};
    const Channels affine(AFFINE ? channel_values : nullptr, AFFINE ? int(thread * LANES % channels) : 0, channels);
    M g[LANES] = {}, gx[LANES] = {}, learn = 0;
    for (int64_t group = thread; group < groups; group += threads) {
        const Place at = place(group, groups, row_groups, x_row);
        NeuronInput input(x + at.in, x_step, affine);
        Input<O, false> gradient(grad + at.out, groups * LANES);
        GradientOutput output{grad_x + at.out, groups * LANES, input, g, gx, {}, {}};
        learn += backward<STEPS, LANES>(input, gradient, output, STEPS, LANES, {SOFT, FULL, LEARN}, n);
        if (REPLAY) {
            UNROLL for (int k = 0; k < LANES; ++k) output.emit(0, k, output.total[k]);
            write(output.out, output.pack);
        }
    }
    if (LEARN) learnt[thread] = learn;
    if (AFFINE) UNROLL for (int k = 0; k < LANES; ++k) {
        sums[thread * LANES + k] = g[k], sums[(threads + thread) * LANES + k] = gx[k];
    }
}

// grad <- a grad + b x + c per channel: what is left of BatchNorm's backward pass when its sums are known.
extern "C" __global__ void __launch_bounds__(256) norm_combine(
    S* __restrict__ grad, const S* __restrict__ x, const M* __restrict__ coefficients, int64_t groups, int channels) {
    const int64_t group = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (group >= groups) return;
    const Channels c(coefficients, int(group * LANES % channels), channels);
    Pack<S> g = read(grad + group * LANES), values = read(x + group * LANES);
    UNROLL for (int k = 0; k < LANES; ++k)
        narrow(c.scale[k] * widen(g.v[k]) + c.shift[k] * widen(values.v[k]) + c.mean[k], g.v[k]);
    write(grad + group * LANES, g);
}

// What BatchNorm is to the kernels above, a thread for a channel: scale, shift and mean of a batch's mean and biased variance.
// One launch, where PyTorch's operations would be six.
extern "C" __global__ void __launch_bounds__(256) norm_affine(
    const float* __restrict__ mean, const float* __restrict__ var, const float* __restrict__ weight,
    const float* __restrict__ bias, float* __restrict__ affine, float* __restrict__ inv_std, int channels, float eps) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    const float inverse = 1.f / square_root(var[c] + eps), scale = weight[c] * inverse;
    inv_std[c] = inverse;
    affine[c] = scale, affine[channels + c] = bias[c] - mean[c] * scale, affine[2 * channels + c] = mean[c];
}

// From the sums of g and of g (x - mean): norm_combine's coefficients, and the gradients of BatchNorm's weight and bias.
extern "C" __global__ void __launch_bounds__(256) norm_coefficients(
    const float* __restrict__ sums, const float* __restrict__ affine, const float* __restrict__ inv_std,
    float* __restrict__ coefficients, float* __restrict__ grads, int channels, float values) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    const float scale = affine[c], mean = affine[2 * channels + c], grad_weight = sums[channels + c] * inv_std[c];
    const float slope = scale * inv_std[c] * grad_weight / -values;
    coefficients[c] = scale, coefficients[channels + c] = slope;
    coefficients[2 * channels + c] = scale * sums[c] / -values - slope * mean;
    grads[c] = grad_weight, grads[channels + c] = sums[c];
}

// Eight spikes, a byte: the first in the lowest bit. LANES is 8 here.
extern "C" __global__ void __launch_bounds__(256) spikes_pack(
    const S* __restrict__ spikes, unsigned char* __restrict__ bits, int64_t bytes) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= bytes) return;
    const Pack<S> values = read(spikes + i * LANES);
    unsigned byte = 0;
    UNROLL for (int k = 0; k < LANES; ++k) byte |= unsigned(widen(values.v[k]) != M(0)) << k;
    bits[i] = (unsigned char)byte;
}

extern "C" __global__ void __launch_bounds__(256) spikes_unpack(
    const unsigned char* __restrict__ bits, S* __restrict__ spikes, int64_t bytes) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= bytes) return;
    const unsigned byte = bits[i];
    Pack<S> values;
    UNROLL for (int k = 0; k < LANES; ++k) narrow(byte >> k & 1u ? M(1) : M(0), values.v[k]);
    write(spikes + i * LANES, values);
}
