// Activation functions, in f32.
#pragma once

#include "device.cuh"

// x / (1 + e^-x).
struct Silu {
    __device__ static float at(float x) { return x / (1.0f + expf(-x)); }
};

// x times the normal distribution function of x. The complementary error function keeps its
// relative accuracy in the tail.
struct Gelu {
    __device__ static float at(float x) { return 0.5f * x * erfcf(x * -0.70710678f); }
};

// x / (1 + e^-u), u = 2 sqrt(2 / pi) (x + 0.044715 x^3): the form with tanh, without its
// cancellation.
struct GeluTanh {
    __device__ static float at(float x) {
        return x / (1.0f + expf(-x * fmaf(x * x, 0.07135482f, 1.595769f)));
    }
};

struct Relu {
    __device__ static float at(float x) { return x < 0.0f ? 0.0f : x; }
};

// Calls body(F()) for the activation function of this number, which crates/kernels/src/cuda/moe.rs
// gives: one branch for a launch, around whatever body does.
template <typename Body> __device__ inline void with_activation(size_t number, Body body) {
    switch (number) {
    case 0: body(Silu()); break;
    case 1: body(Gelu()); break;
    case 2: body(GeluTanh()); break;
    default: body(Relu()); break;
    }
}
