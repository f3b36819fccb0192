// The leaky integrate-and-fire neuron over a whole sequence: the one source of every compiled backend.
//
// native.cpp compiles it for the CPU, kernels.cu for the GPU. Here is what a group of neurons computes; where its values lie
// in memory, and how many groups run side by side, is the machine's business: it brings a `Load` with fetch(t), then at(t, lane),
// and a `Store` with put(t, lane, value), then flush(t). The equations stand in torch_backend.py. S is the storage type, M the
// membrane's: float, or double for double. Nothing is saved but the input: backward builds the membrane again.
#pragma once

#ifdef __CUDACC__
#define INLINE __device__ __forceinline__
#define INLINE_MEMBER __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define SIMD _Pragma("unroll")
#ifdef __CUDACC_RTC__  // which has no headers
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
#endif
#else
#include <cmath>
#include <cstdint>
#include <cstring>
#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))
#define UNROLL
#define SIMD _Pragma("omp simd")
#endif

namespace statten {

template <class M> struct Neuron { M inv_tau, v_threshold, v_reset, alpha; };

struct Choices {
    bool soft;    // a spike subtracts the threshold from the membrane; else it sets it to v_reset
    bool full;    // the reset is differentiated; else it is detached
    bool learn;   // the gradient of 1/tau is wanted
};

// Storage types without the vendors' headers, which NVRTC does not find everywhere.
struct Half { uint16_t bits; };
struct BFloat { uint16_t bits; };

#ifdef __CUDACC__
INLINE uint32_t as_bits(float x) { return __float_as_uint(x); }
INLINE float as_float(uint32_t x) { return __uint_as_float(x); }
INLINE float widen(Half x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }
INLINE void narrow(float x, Half& y) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
INLINE float exp2_of_negative(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
INLINE double exp2_of_negative(double x) { return exp2(x); }
INLINE float quotient(float a, float b) { return __fdividef(a, b); }
INLINE double quotient(double a, double b) { return a / b; }
INLINE float magnitude(float x) { return fabsf(x); }
INLINE double magnitude(double x) { return fabs(x); }
INLINE float square_root(float x) { return sqrtf(x); }
#else
INLINE uint32_t as_bits(float x) { uint32_t y; std::memcpy(&y, &x, 4); return y; }
INLINE float as_float(uint32_t x) { float y; std::memcpy(&y, &x, 4); return y; }
// Compilers before GCC 13 have no half type in C++. Integer arithmetic vectorises everywhere; subnormals, infinities and NaN
// come out right.
INLINE float widen(Half x) {
    uint32_t shifted = (x.bits & 0x7fffu) << 13;
    float finite = as_float(shifted) * 0x1p112f;
    uint32_t special = shifted >= 0x0f800000u ? 0x7f800000u : 0u;
    return as_float(as_bits(finite) | special | (x.bits & 0x8000u) << 16);
}
INLINE void narrow(float x, Half& y) {
    uint32_t sign = as_bits(x) & 0x80000000u, size = as_bits(x) ^ sign;
    // Below 2^-14 an addition rounds to the spacing of subnormals; above, the bits that are cut off round to even.
    uint32_t subnormal = as_bits(as_float(size) + 0.5f) - 0x3f000000u;
    uint32_t normal = (size - 0x37fff001u + (size >> 13 & 1u)) >> 13;
    uint32_t special = size > 0x7f800000u ? 0x7e00u : 0x7c00u;
    uint32_t bits = size < 0x38800000u ? subnormal : size < 0x477ff000u ? normal : special;
    y.bits = uint16_t(bits | sign >> 16);
}
// 2^x for x <= 0 to a unit in the last place, in operations that every compiler vectorises. Adding 1.5 * 2^23 rounds to whole
// numbers, and leaves them in the lowest bits, from where a shift brings them to the exponent.
INLINE float exp2_of_negative(float x) {
    x = x < -126.f ? -126.f : x;
    float shifted = x + 12582912.f, rest = x - (shifted - 12582912.f);
    float power = 0.00132764715f;
    power = power * rest + 0.00967554133f;
    power = power * rest + 0.0555071327f;
    power = power * rest + 0.240221197f;
    power = power * rest + 0.693146967f;
    power = power * rest + 1.00000007f;
    return as_float(as_bits(power) + (as_bits(shifted) << 23));
}
INLINE double exp2_of_negative(double x) { return std::exp2(x); }
INLINE float quotient(float a, float b) { return a / b; }
INLINE double quotient(double a, double b) { return a / b; }
INLINE float magnitude(float x) { return std::fabs(x); }
INLINE double magnitude(double x) { return std::fabs(x); }
INLINE float square_root(float x) { return std::sqrt(x); }
#endif

INLINE float widen(float x) { return x; }
INLINE double widen(double x) { return x; }
INLINE float widen(BFloat x) { return as_float(uint32_t(x.bits) << 16); }
INLINE void narrow(float x, float& y) { y = x; }
INLINE void narrow(double x, double& y) { y = x; }
INLINE void narrow(float x, BFloat& y) {
    uint32_t bits = as_bits(x), rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    y.bits = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

template <class S> struct MembraneOf { typedef float type; };
template <> struct MembraneOf<double> { typedef double type; };

// The leak and the input in one multiply-add each. A soft reset has no v_reset: it leaks to 0.
template <class M> INLINE M charge(M v, M x, const Choices c, const Neuron<M>& n) {
    return v * (M(1) - n.inv_tau) + (x * n.inv_tau + (c.soft ? M(0) : n.v_reset * n.inv_tau));
}

template <class M> INLINE M reset(M h, const Choices c, const Neuron<M>& n) {
    return h >= n.v_threshold ? (c.soft ? h - n.v_threshold : n.v_reset) : h;
}

template <class M> INLINE M at_rest(const Choices c, const Neuron<M>& n) { return c.soft ? M(0) : n.v_reset; }

// alpha sigma(alpha u) (1 - sigma(alpha u)), even in u, so that the exponential never overflows.
template <class M> INLINE M surrogate(M u, M alpha) {
    M e = exp2_of_negative(magnitude(u) * (alpha * M(-1.4426950408889634))), one = M(1) + e;
    return quotient(alpha * e, one * one);
}

// Spikes of `lanes` <= MOST_LANES neurons over `steps` timesteps.
template <int MOST_LANES, class M, class Load, class Store>
INLINE void forward(Load& x, Store& spikes, int steps, int lanes, const Choices c, const Neuron<M> n) {
    M v[MOST_LANES];
    SIMD for (int k = 0; k < lanes; ++k) v[k] = at_rest(c, n);
    UNROLL for (int t = 0; t < steps; ++t) {
        x.fetch(t);
        SIMD for (int k = 0; k < lanes; ++k) {
            M h = charge(v[k], x.at(t, k), c, n);
            spikes.put(t, k, h >= n.v_threshold ? M(1) : M(0));
            v[k] = reset(h, c, n);
        }
        spikes.flush(t);
    }
}

// The gradient of the input from that of the spikes; returns that of 1/tau if it is wanted.
template <int MOST_STEPS, int MOST_LANES, class M, class Load, class Gradient, class Store>
INLINE M backward(Load& x, Gradient& grad, Store& grad_x, int steps, int lanes, const Choices c, const Neuron<M> n) {
    M h[MOST_STEPS][MOST_LANES], v[MOST_LANES], learnt[MOST_LANES];
    SIMD for (int k = 0; k < lanes; ++k) v[k] = at_rest(c, n), learnt[k] = M(0);
    UNROLL for (int t = 0; t < steps; ++t) {
        x.fetch(t);
        SIMD for (int k = 0; k < lanes; ++k) {
            h[t][k] = charge(v[k], x.at(t, k), c, n);
            v[k] = reset(h[t][k], c, n);
        }
    }
    SIMD for (int k = 0; k < lanes; ++k) v[k] = M(0);  // from here on the gradient of the membrane
    UNROLL for (int t = steps - 1; t >= 0; --t) {
        grad.fetch(t);
        SIMD for (int k = 0; k < lanes; ++k) {
            M d = surrogate(h[t][k] - n.v_threshold, n.alpha);
            M kept = c.soft || h[t][k] < n.v_threshold ? M(1) : M(0);
            if (c.full) kept += d * (c.soft ? -n.v_threshold : n.v_reset - h[t][k]);
            M g_h = grad.at(t, k) * d + v[k] * kept;
            v[k] = g_h * (M(1) - n.inv_tau);
            grad_x.put(t, k, g_h * n.inv_tau);
            // h - v is what drove the membrane, times 1/tau: dividing once at the end spares reading x again.
            if (c.learn) learnt[k] += g_h * (h[t][k] - (t > 0 ? reset(h[t > 0 ? t - 1 : 0][k], c, n) : at_rest(c, n)));
        }
        grad_x.flush(t);
    }
    M sum = M(0);
    if (c.learn) UNROLL for (int k = 0; k < lanes; ++k) sum += learnt[k];
    return sum / n.inv_tau;
}

}  // namespace statten
