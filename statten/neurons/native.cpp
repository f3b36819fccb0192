// The CPU's side of recurrence.h: which neurons a thread takes, and where their values lie. Built and called by native.py.
#include "recurrence.h"

#include <algorithm>
#include <atomic>
#include <vector>

namespace {

using namespace statten;

// Neurons that go through all timesteps together: few enough for a core's caches, enough that every frame's stretch is read
// in a stream (a layer's frames often lie at a power of two from each other, where caches hold few lines at once).
constexpr int LANES = 512, MAX_STEPS = 64;
// Below this many values a second thread costs more than it saves.
constexpr int64_t WORTH_A_TEAM = 1 << 15;
// Values that are summed in the membrane's type before they go to a double.
constexpr int64_t SHORT_SUM = 64;

}  // namespace

// Field for field `_Problem` in native.py.
struct Problem {
    const void* x;        // [steps or 1][rows][length], strides x_step and x_row, the last one dense
    const void* grad;     // dense, in the spikes' type
    void* out;            // dense
    const double* scale;  // per channel: x * scale + shift is the neuron's input; or null
    const double* shift;
    const double* mean;
    double* sums;         // [2][channels]: sum of g, sum of g (x - mean); or null
    double* learnt;       // gradient of 1/tau; or null
    int64_t* count;       // spikes; or null
    int64_t rows, length, x_step, x_row, channels, run;  // x_step 0 replays a frame; channel of column i: i / run % channels
    double inv_tau, v_threshold, v_reset, alpha;
    int32_t steps, threads, soft, full, replay;
};

namespace {

// Calls f(first lane, lanes, channel) for each stretch of columns that begins at `column` and has one channel (run > 1) or
// consecutive ones (run == 1).
template <class F> inline void by_channel(int64_t column, int lanes, int64_t channels, int64_t run, F f) {
    for (int k = 0; k < lanes;) {
        int64_t at = column + k, channel = at / run % channels;
        int64_t left = run == 1 ? channels - channel : run - at % run;
        int n = int(std::min<int64_t>(left, lanes - k));
        f(k, n, channel);
        k += n;
    }
}

template <class M> struct Affine {
    M scale[LANES], shift[LANES], mean[LANES];
    void gather(const Problem& p, int64_t column, int lanes) {
        by_channel(column, lanes, p.channels, p.run, [&](int k, int n, int64_t channel) {
            for (int i = 0; i < n; ++i) {
                int64_t c = p.run == 1 ? channel + i : channel;
                scale[k + i] = M(p.scale[c]), shift[k + i] = M(p.shift[c]), mean[k + i] = M(p.mean[c]);
            }
        });
    }
};

// AHEAD asks for the next group's values early: backward computes long enough to hide the wait, forward does not.
template <class S, class M, bool AHEAD> struct Input {
    const S* x;
    int64_t step;  // 0 replays one frame
    void fetch(int t) const {
        if (!AHEAD) return;
        const char* next = (const char*)(x + t * step + LANES);
        for (int i = 0; i < int(LANES * sizeof(S)); i += 64) __builtin_prefetch(next + i, 0, 2);
    }
    M at(int t, int k) const { return widen(x[t * step + k]); }
};

template <class S, class M, bool AHEAD> struct AffineInput : Input<S, M, AHEAD> {
    Affine<M> affine;
    M raw(int t, int k) const { return Input<S, M, AHEAD>::at(t, k); }
    M at(int t, int k) const { return raw(t, k) * affine.scale[k] + affine.shift[k]; }
};

template <class O, class M> struct Output {
    O* out;
    int64_t step;
    void put(int t, int k, M value) { narrow(value, out[t * step + k]); }
    void flush(int) const {}
};

template <class O, class M> struct CountedOutput : Output<O, M> {
    M total[LANES];
    void put(int t, int k, M value) {
        Output<O, M>::put(t, k, value);
        total[k] += value;
    }
};

// Gradients of a frame that was replayed: their sum over time.
template <class M> struct SummedOutput {
    M total[LANES];
    void put(int, int k, M value) { total[k] += value; }
    void flush(int) const {}
};

// Gradients behind a BatchNorm, with its two sums over time.
template <class S, class M> struct NormOutput : Output<S, M> {
    const AffineInput<S, M, true>* x;
    M g[LANES], gx[LANES];
    void put(int t, int k, M value) {
        Output<S, M>::put(t, k, value);
        g[k] += value;
        gx[k] += value * (x->raw(t, k) - x->affine.mean[k]);
    }
};

template <class M> inline void clear(M* values, int lanes) { std::fill(values, values + lanes, M(0)); }

// Calls f(thread, row, column, lanes) for every group of neurons; a thread takes neighbours, the same ones every time.
template <class F> void each_group(const Problem& p, F f) {
    int64_t per_row = (p.length + LANES - 1) / LANES, groups = p.rows * per_row;
    bool team = p.threads > 1 && p.rows * p.length * p.steps >= WORTH_A_TEAM;
#pragma omp parallel for schedule(static, 1) num_threads(p.threads) if (team)
    for (int thread = 0; thread < p.threads; ++thread)
        for (int64_t i = groups * thread / p.threads; i < groups * (thread + 1) / p.threads; ++i) {
            int64_t row = i / per_row, column = i % per_row * LANES;
            f(thread, row, column, int(std::min<int64_t>(LANES, p.length - column)));
        }
}

template <class M> Neuron<M> neuron(const Problem& p) { return {M(p.inv_tau), M(p.v_threshold), M(p.v_reset), M(p.alpha)}; }

// S is the input's storage type, O that of the spikes.
template <class S, class O> struct Lif {
    typedef typename MembraneOf<S>::type M;

    template <class Load, class Store> static void spikes(const Problem& p, Load& x, Store& out, int lanes) {
        const Neuron<M> n = neuron<M>(p);
        // The usual neuron gets its own code, the others share one that branches.
        if (!p.soft) statten::forward<LANES>(x, out, p.steps, lanes, {false, false, false}, n);
        else statten::forward<LANES>(x, out, p.steps, lanes, {true, false, false}, n);
    }

    static void forward(const Problem& p) {
        std::vector<int64_t> counts(p.threads);
        each_group(p, [&](int thread, int64_t row, int64_t column, int lanes) {
            const Input<S, M, false> input{(const S*)p.x + row * p.x_row + column, p.x_step};
            CountedOutput<O, M> out;
            out.out = (O*)p.out + row * p.length + column, out.step = p.rows * p.length;
            clear(out.total, lanes);
            auto run = [&](auto& x) {
                if (p.count) spikes(p, x, out, lanes);
                else spikes(p, x, static_cast<Output<O, M>&>(out), lanes);
            };
            if (p.scale) {
                AffineInput<S, M, false> x;
                static_cast<Input<S, M, false>&>(x) = input;
                x.affine.gather(p, column, lanes);
                run(x);
            } else {
                run(input);
            }
            if (p.count) for (int k = 0; k < lanes; ++k) counts[thread] += int64_t(out.total[k]);
        });
        if (p.count) for (int64_t c : counts) *p.count += c;
    }

    template <class Load, class Store>
    static M gradients(const Problem& p, Load& x, Store& out, int64_t at, int lanes) {
        const Neuron<M> n = neuron<M>(p);
        const Input<O, M, true> grad{(const O*)p.grad + at, p.rows * p.length};
        if (!p.soft && !p.full && !p.learnt)
            return statten::backward<MAX_STEPS, LANES>(x, grad, out, p.steps, lanes, {false, false, false}, n);
        const Choices c{p.soft != 0, p.full != 0, p.learnt != nullptr};
        return statten::backward<MAX_STEPS, LANES>(x, grad, out, p.steps, lanes, c, n);
    }

    static void backward(const Problem& p) {
        const int64_t channels = p.sums ? p.channels : 0;
        std::vector<double> sums(2 * channels * p.threads), learnt(p.threads);
        each_group(p, [&](int thread, int64_t row, int64_t column, int lanes) {
            const int64_t at = row * p.length + column;
            const Input<S, M, true> input{(const S*)p.x + row * p.x_row + column, p.x_step};
            Output<S, M> out;
            out.out = (S*)p.out + at, out.step = p.rows * p.length;
            SummedOutput<M> summed;
            if (!p.scale) {
                if (!p.replay) {
                    learnt[thread] += gradients(p, input, out, at, lanes);
                    return;
                }
                clear(summed.total, lanes);
                learnt[thread] += gradients(p, input, summed, at, lanes);
                SIMD for (int k = 0; k < lanes; ++k) out.put(0, k, summed.total[k]);
                return;
            }
            AffineInput<S, M, true> x;
            static_cast<Input<S, M, true>&>(x) = input;
            x.affine.gather(p, column, lanes);
            NormOutput<S, M> norm;
            static_cast<Output<S, M>&>(norm) = out;
            norm.x = &x;
            clear(norm.g, lanes), clear(norm.gx, lanes);
            if (p.replay) {
                clear(summed.total, lanes);
                learnt[thread] += gradients(p, x, summed, at, lanes);
                SIMD for (int k = 0; k < lanes; ++k) norm.put(0, k, summed.total[k]);
            } else {
                learnt[thread] += gradients(p, x, norm, at, lanes);
            }
            double* total = sums.data() + 2 * channels * thread;
            by_channel(column, lanes, channels, p.run, [&](int k, int count, int64_t channel) {
                for (int i = 0; i < count; ++i) {
                    int64_t c = p.run == 1 ? channel + i : channel;
                    total[c] += norm.g[k + i], total[channels + c] += norm.gx[k + i];
                }
            });
        });
        for (int thread = 0; thread < p.threads; ++thread) {
            if (p.learnt) *p.learnt += learnt[thread];
            for (int64_t i = 0; i < 2 * channels; ++i) p.sums[i] += sums[2 * channels * thread + i];
        }
    }
};

template <class S> struct Norm {
    typedef typename MembraneOf<S>::type M;

    // The sums over each channel of two values that term(i, channel, first, second) makes of the i-th value of a dense
    // [outer][channels][run]; [2][channels].
    template <class Term> static std::vector<double> channel_sums(const Problem& p, Term term) {
        const int64_t C = p.channels, run = p.run, outer = p.length / (C * run);
        std::vector<double> totals(2 * C * p.threads);
        bool team = p.threads > 1 && p.length >= WORTH_A_TEAM;
#pragma omp parallel for schedule(static, 1) num_threads(p.threads) if (team)
        for (int thread = 0; thread < p.threads; ++thread) {
            double* total = totals.data() + 2 * C * thread;
            const int64_t first = outer * thread / p.threads, last = outer * (thread + 1) / p.threads;
            std::vector<M> short_sum(2 * C);
            M *a = short_sum.data(), *b = a + C;
            for (int64_t from = first; run == 1 && from < last; from += SHORT_SUM) {
                std::fill(short_sum.begin(), short_sum.end(), M(0));
                for (int64_t m = from; m < std::min(last, from + SHORT_SUM); ++m)
                    SIMD for (int64_t c = 0; c < C; ++c) {
                        M u, w;
                        term(m * C + c, c, u, w);
                        a[c] += u, b[c] += w;
                    }
                for (int64_t c = 0; c < 2 * C; ++c) total[c] += a[c];
            }
            for (int64_t m = first; run > 1 && m < last; ++m)
                for (int64_t c = 0; c < C; ++c)
                    for (int64_t from = 0; from < run; from += 16 * SHORT_SUM) {
                        const int64_t at = (m * C + c) * run + from, n = std::min(run - from, 16 * SHORT_SUM);
                        M s = 0, q = 0;
                        _Pragma("omp simd reduction(+ : s, q)") for (int64_t i = 0; i < n; ++i) {
                            M u, w;
                            term(at + i, c, u, w);
                            s += u, q += w;
                        }
                        total[c] += s, total[C + c] += q;
                    }
        }
        for (int thread = 1; thread < p.threads; ++thread)
            for (int64_t c = 0; c < 2 * C; ++c) totals[c] += totals[2 * C * thread + c];
        return totals;
    }

    // Mean and biased variance of each channel of x, into sums [2][channels].
    static void moments(const Problem& p) {
        const S* x = (const S*)p.x;
        const int64_t C = p.channels;
        std::vector<M> pivots(C);
        for (int64_t c = 0; c < C; ++c) pivots[c] = widen(x[c * p.run]);
        const M* pivot = pivots.data();
        const std::vector<double> totals = channel_sums(p, [=](int64_t i, int64_t c, M& d, M& square) {
            d = widen(x[i]) - pivot[c], square = d * d;
        });
        const double n = double(p.length / C);
        for (int64_t c = 0; c < C; ++c) {
            const double mean = totals[c] / n;
            p.sums[c] = pivot[c] + mean;
            p.sums[C + c] = std::max(0.0, totals[C + c] / n - mean * mean);
        }
    }

    // The sums over each channel of g and of g (x - mean), into sums [2][channels].
    static void gradients(const Problem& p) {
        const S *x = (const S*)p.x, *grad = (const S*)p.grad;
        std::vector<M> means(p.mean, p.mean + p.channels);
        const M* mean = means.data();
        const std::vector<double> totals = channel_sums(p, [=](int64_t i, int64_t c, M& g, M& gx) {
            g = widen(grad[i]), gx = g * (widen(x[i]) - mean[c]);
        });
        std::copy(totals.begin(), totals.begin() + 2 * p.channels, p.sums);
    }

    // out = scale grad + shift x + mean, per channel; dense, [outer][channels][run]. `out` may be `grad`.
    static void combine(const Problem& p) {
        const S *x = (const S*)p.x, *g = (const S*)p.grad;
        S* out = (S*)p.out;
        const int64_t C = p.channels, run = p.run, outer = p.length / (C * run);
        std::vector<M> a(C), b(C), c0(C);
        for (int64_t c = 0; c < C; ++c) a[c] = M(p.scale[c]), b[c] = M(p.shift[c]), c0[c] = M(p.mean[c]);
        const M *A = a.data(), *B = b.data(), *C0 = c0.data();
        bool team = p.threads > 1 && p.length >= WORTH_A_TEAM;
#pragma omp parallel for schedule(static) num_threads(p.threads) if (team)
        for (int64_t m = 0; m < outer; ++m) {
            if (run == 1) {
                const int64_t at = m * C;
                SIMD for (int64_t c = 0; c < C; ++c)
                    narrow(A[c] * widen(g[at + c]) + B[c] * widen(x[at + c]) + C0[c], out[at + c]);
                continue;
            }
            for (int64_t c = 0; c < C; ++c) {
                const int64_t at = (m * C + c) * run;
                const M scale = A[c], slope = B[c], constant = C0[c];
                SIMD for (int64_t i = 0; i < run; ++i)
                    narrow(scale * widen(g[at + i]) + slope * widen(x[at + i]) + constant, out[at + i]);
            }
        }
    }
};

// Spikes [length] as bits, eight in a byte, the first in the lowest bit.
template <class S> struct Bits {
    typedef typename MembraneOf<S>::type M;

    static void pack(const Problem& p) {
        const S* spikes = (const S*)p.x;
        uint8_t* bits = (uint8_t*)p.out;
        const int64_t bytes = (p.length + 7) / 8;
        bool team = p.threads > 1 && p.length >= WORTH_A_TEAM;
#pragma omp parallel for schedule(static) num_threads(p.threads) if (team)
        for (int64_t i = 0; i < bytes; ++i) {
            unsigned byte = 0;
            const int n = int(std::min<int64_t>(8, p.length - 8 * i));
            for (int k = 0; k < n; ++k) byte |= unsigned(widen(spikes[8 * i + k]) != M(0)) << k;
            bits[i] = uint8_t(byte);
        }
    }

    static void unpack(const Problem& p) {
        const uint8_t* bits = (const uint8_t*)p.x;
        S* spikes = (S*)p.out;
        bool team = p.threads > 1 && p.length >= WORTH_A_TEAM;
#pragma omp parallel for schedule(static) num_threads(p.threads) if (team)
        for (int64_t i = 0; i < p.length / 8; ++i)
            SIMD for (int k = 0; k < 8; ++k) narrow(bits[i] >> k & 1 ? M(1) : M(0), spikes[8 * i + k]);
        for (int64_t i = p.length / 8 * 8; i < p.length; ++i) narrow(bits[i / 8] >> i % 8 & 1 ? M(1) : M(0), spikes[i]);
    }
};

}  // namespace

static std::atomic<int64_t> calls;
// How often any of the functions below has run.
extern "C" int64_t native_calls() { return calls; }

#define EXPORT(function, type, call) \
    extern "C" void function##_##type(const Problem* p) { ++calls, call(*p); }
#define LIF(name, S, O) EXPORT(forward, name, (Lif<S, O>::forward)) EXPORT(backward, name, (Lif<S, O>::backward))
#define NORM(name, S) \
    EXPORT(moments, name, Norm<S>::moments) EXPORT(gradients, name, Norm<S>::gradients) EXPORT(combine, name, Norm<S>::combine)
#define BITS(name, S) EXPORT(pack, name, Bits<S>::pack) EXPORT(unpack, name, Bits<S>::unpack)

LIF(float64_float64, double, double)
LIF(float32_float32, float, float)
LIF(float32_float16, float, Half)
LIF(float32_bfloat16, float, BFloat)
LIF(float16_float16, Half, Half)
LIF(bfloat16_bfloat16, BFloat, BFloat)
NORM(float64, double) BITS(float64, double)
NORM(float32, float) BITS(float32, float)
NORM(float16, Half) BITS(float16, Half)
NORM(bfloat16, BFloat) BITS(bfloat16, BFloat)
