// The rules that overwrite (delta, kda) in the form that a GPU computes, product by product, in
// plain loops and f64: what the bound of bf16 is made from (rounding.h). The CPU's own form cuts
// the same equations otherwise: it substitutes where this one multiplies by the inverse of a
// piece's triangular system, and kda's goes from state to state every 16 tokens where this one has
// 64.
//
// Operands of products are rounded once each, from the exact number: q and k (for kda with their
// decays), scores between tokens and their gradients, what is written and erased, states. The
// inverse and what it multiplies are two operands each, the number and what rounding left of it.
// dbeta and dg are sums over what is at hand in fp32 or lies in memory as an operand. Exact is all
// else: decays, the system before it is inverted, and what kda makes of two tokens of one block of
// 16.
// Equations: scan.cuh; delta/backward.cuh and kda/backward.cuh.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/contract/mechanism.h"
#include "kernels/contract/rounding.h"
#include "kernels/tokens/chunk.h"
#include "kernels/tokens/pieces.h"

namespace weft::kernels::delta_rule {

struct Matrix {
  int64_t rows = 0, columns = 0;
  std::vector<double> x;

  Matrix() = default;
  Matrix(int64_t r, int64_t c) : rows(r), columns(c), x(static_cast<size_t>(r * c)) {}
  template <class F>
  Matrix(int64_t r, int64_t c, const F& f) : Matrix(r, c) {  // element (i, j) is f(i, j)
    for (int64_t i = 0; i < r; ++i)
      for (int64_t j = 0; j < c; ++j) (*this)(i, j) = f(i, j);
  }
  double& operator()(int64_t i, int64_t j) { return x[static_cast<size_t>(i * columns + j)]; }
  double operator()(int64_t i, int64_t j) const { return x[static_cast<size_t>(i * columns + j)]; }
};

inline Matrix operands(Matrix a) {
  for (double& x : a.x) x = operand(x);
  return a;
}
inline Matrix transposed(const Matrix& a) {
  return {a.columns, a.rows, [&](int64_t i, int64_t j) { return a(j, i); }};
}
inline Matrix product(const Matrix& left, const Matrix& right) {
  const Matrix a = operands(left), b = operands(right);
  Matrix c(a.rows, b.columns);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t l = 0; l < a.columns; ++l) {
      const double by = a(i, l);
      double* const to = c.x.data() + i * c.columns;
      const double* const from = b.x.data() + l * b.columns;
#pragma omp simd
      for (int64_t j = 0; j < b.columns; ++j) to[j] += by * from[j];
    }
  return c;
}
inline void add(const Matrix& more, Matrix& to) {
  for (size_t i = 0; i < to.x.size(); ++i) to.x[i] += more.x[i];
}
// The same where each factor is its operand and what rounding left of it, an operand too.
inline Matrix close_product(const Matrix& left, const Matrix& right) {
  const auto rest = [](const Matrix& a) {
    return Matrix(a.rows, a.columns,
                  [&](int64_t i, int64_t j) { return a(i, j) - operand(a(i, j)); });
  };
  Matrix c = product(left, right);
  add(product(rest(left), right), c);
  add(product(left, rest(right)), c);
  return c;
}

// M is Delta or Kda.
template <class M>
class Form {
 public:
  Form(const Inputs<M>& x, const Options<M>& o)
      : docs_(o.cu_seqlens, x.v.size(0), x.v.size(1), kChunk),
        vector_(x.g && x.g.dims() == 4),
        K_(x.k.size(3)),
        V_(x.v.size(3)),
        H_(x.v.size(2)),
        group_(H_ / x.k.size(2)),
        scale_(o.factor(K_)),
        x_{view<const double>(x.q), view<const double>(x.k),
           view<const double>(x.v), view<const double>(x.beta),
           view<const double>(x.g), view<const double>(x.initial_state)} {}

  void forward(Outputs<M>& out) {
    const View<double> o = view<double>(out.o), final_state = view<double>(out.final_state);
    for_heads([&](int64_t n, int64_t h) {
      const int64_t b = docs_.row(n);
      Matrix S = state(x_.initial_state, n, h);
      for (const Piece& p : pieces(n)) {
        const Tokens x = tokens(p, b, h);
        const Matrix U = written(x, S), read = reads(x.q_up, S), inner = product(x.P, U);
        for_each(p.size(), V_,
                 [&](int64_t i, int64_t c) { o(b, p.begin + i, h, c) = read(i, c) + inner(i, c); });
        S = after(x, S, gives(x.k_end, U));
      }
      if (final_state)
        for_each(K_, V_, [&](int64_t d, int64_t c) { final_state(n, h, d, c) = S(d, c); });
    });
  }

  void backward(const Outputs<M>& dy, Inputs<M>& dx) {
    const Gradients to{view<double>(dx.q),    view<double>(dx.k), view<double>(dx.v),
                       view<double>(dx.beta), view<double>(dx.g), view<double>(dx.initial_state)};
    if (dx.q) dx.q.zero();
    if (dx.k) dx.k.zero();
    const View<const double> dout = view<const double>(dy.o),
                             dfinal = view<const double>(dy.final_state);
    for_heads([&](int64_t n, int64_t h) {
      const int64_t b = docs_.row(n);
      const std::vector<Piece> list = pieces(n);
      std::vector<Matrix> before = {state(x_.initial_state, n, h)};
      for (const Piece& p : list) {
        const Tokens x = tokens(p, b, h);
        before.push_back(after(x, before.back(), gives(x.k_end, written(x, before.back()))));
      }
      Matrix dS = state(dfinal, n, h);
      for (size_t at = list.size(); at-- > 0;) {
        const Piece& p = list[at];
        const Tokens x = tokens(p, b, h);
        const Matrix dO(p.size(), V_,
                        [&](int64_t i, int64_t c) { return dout(b, p.begin + i, h, c); });
        const Matrix U = written(x, before[at]);
        Matrix dU = product(transposed(x.P), dO);
        add(reads(x.k_end, dS), dU);
        const Matrix R = close_product(transposed(x.X), dU);
        const Matrix dV(p.size(), V_, [&](int64_t i, int64_t c) { return x.beta[i] * R(i, c); });
        if (to.v)
          for_each(p.size(), V_,
                   [&](int64_t i, int64_t c) { to.v(b, p.begin + i, h, c) = dV(i, c); });
        token_gradients(p, b, h, x, before[at], dS, dO, U, R, to);
        const Matrix read = gives(x.q_up, dO), erased = gives(x.k_up, dV);
        dS =
            after(x, dS, {K_, V_, [&](int64_t d, int64_t c) { return read(d, c) - erased(d, c); }});
      }
      if (to.initial_state)
        for_each(K_, V_, [&](int64_t d, int64_t c) { to.initial_state(n, h, d, c) = dS(d, c); });
    });
  }

 private:
  static constexpr int64_t kChunk = 64, kBlock = 16;
  using Gradients = Inputs<M, View<double>>;

  // MatrixView that meet a state: a gate a channel is part of the operand, one a head a factor of
  // the token.
  struct MatrixView {
    Matrix rows;
    std::vector<double> factor;
  };
  struct Tokens {
    Matrix q, k, v, sum;  // sum: of log gates from the piece's start, [n, K]
    Matrix k_down;        // of kda: k decayed to its block's end
    std::vector<double> beta;
    MatrixView q_up, k_up, k_end;
    Matrix P, X;
    int64_t n() const { return q.rows; }
    // The decay from after token j, or from before the piece (-1), to token i.
    double decay(int64_t j, int64_t i, int64_t d) const {
      return std::exp(sum(i, d) - (j < 0 ? 0 : sum(j, d)));
    }
    double to_end(int64_t i, int64_t d) const { return decay(i, n() - 1, d); }
  };

  template <class F>
  static void for_each(int64_t rows, int64_t columns, const F& f) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) f(i, j);
  }
  template <class F>
  void for_heads(const F& f) const {
    for_each(docs_.count(), H_, f);
  }
  std::vector<Piece> pieces(int64_t n) const {
    std::vector<Piece> list;
    for (int64_t c = 0; c < docs_.chunks(); ++c)
      docs_.for_pieces(docs_.row(n), c, [&](const Piece& p) {
        if (p.document == n) list.push_back(p);
      });
    return list;
  }
  Matrix state(const View<const double>& from, int64_t n, int64_t h) const {
    return {K_, V_, [&](int64_t d, int64_t c) { return from ? from(n, h, d, c) : 0; }};
  }

  Tokens tokens(const Piece& p, int64_t b, int64_t h) const {
    const int64_t n = p.size(), t = p.begin, hk = h / group_;
    Tokens x;
    x.q = {n, K_, [&](int64_t i, int64_t d) { return x_.q(b, t + i, hk, d); }};
    x.k = {n, K_, [&](int64_t i, int64_t d) { return x_.k(b, t + i, hk, d); }};
    x.v = {n, V_, [&](int64_t i, int64_t c) { return x_.v(b, t + i, h, c); }};
    x.sum = {n, K_};
    for_each(n, K_, [&](int64_t i, int64_t d) {
      const double g = vector_ ? x_.g(b, t + i, h, d) : x_.g ? x_.g(b, t + i, h) : 0;
      x.sum(i, d) = (i > 0 ? x.sum(i - 1, d) : 0) + std::max(g, kForgetsAll);
    });
    for (int64_t i = 0; i < n; ++i) x.beta.push_back(x_.beta(b, t + i, h));
    const auto up = [&](int64_t i, int64_t d) { return x.decay(-1, i, d); };
    x.q_up = faded(x.q, scale_, up);
    x.k_up = faded(x.k, 1, up);
    x.k_end = faded(x.k, 1, [&](int64_t i, int64_t d) { return x.to_end(i, d); });
    if (vector_)
      x.k_down = {n, K_, [&](int64_t i, int64_t d) {
                    return x.k(i, d) * x.decay(i, std::min(i / kBlock * kBlock + kBlock, n) - 1, d);
                  }};
    x.P = scores(x, x.q);
    for (double& score : x.P.x) score *= scale_;
    const Matrix L = scores(x, x.k);
    x.X = {n, n};
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j <= i; ++j) {
        x.X(i, j) = i == j;
        for (int64_t l = j; l < i; ++l) x.X(i, j) -= x.beta[i] * L(i, l) * x.X(l, j);
      }
    return x;
  }
  template <class F>
  MatrixView faded(const Matrix& rows, double factor, const F& decay) const {
    MatrixView out{rows, std::vector<double>(static_cast<size_t>(rows.rows), 1)};
    for (int64_t i = 0; i < rows.rows; ++i)
      if (!vector_) out.factor[i] = factor * decay(i, 0);
    if (vector_)
      for_each(rows.rows, K_,
               [&](int64_t i, int64_t d) { out.rows(i, d) *= factor * decay(i, d); });
    return out;
  }
  Matrix reads(const MatrixView& a, const Matrix& S) const {
    Matrix y = product(a.rows, S);
    for_each(y.rows, V_, [&](int64_t i, int64_t c) { y(i, c) *= a.factor[i]; });
    return y;
  }
  Matrix gives(const MatrixView& a, Matrix u) const {
    for_each(u.rows, V_, [&](int64_t i, int64_t c) { u(i, c) *= a.factor[i]; });
    return product(transposed(a.rows), u);
  }
  Matrix written(const Tokens& x, const Matrix& S) const {
    const Matrix read = reads(x.k_up, S);
    return close_product(x.X, {x.n(), V_, [&](int64_t i, int64_t c) {
                                 return x.beta[i] * (x.v(i, c) - read(i, c));
                               }});
  }
  // A state over the piece, backwards as well.
  Matrix after(const Tokens& x, const Matrix& S, const Matrix& more) const {
    return {K_, V_,
            [&](int64_t d, int64_t c) { return x.decay(-1, x.n() - 1, d) * S(d, c) + more(d, c); }};
  }

  // For kda the tokens of two blocks, J before I, meet in products: f(first token of I, how many,
  // first of J). A decay between them is cut at the end of J and where I begins.
  template <class F>
  static void for_blocks_apart(int64_t n, const F& f) {
    for (int64_t i = kBlock; i < n; i += kBlock)
      for (int64_t j = 0; j < i; j += kBlock) f(i, std::min(kBlock, n - i), j);
  }
  // Tokens j < i that are multiplied one by one: those of a block of kda.
  template <class F>
  void for_pairs_within(int64_t n, const F& f) const {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = i / kBlock * kBlock; j < i; ++j)
        for (int64_t d = 0; d < K_; ++d) f(i, j, d);
  }
  static Matrix part(const Matrix& a, int64_t row, int64_t rows, int64_t column, int64_t columns) {
    return {rows, columns, [&](int64_t i, int64_t j) { return a(row + i, column + j); }};
  }
  // MatrixView r .. r + size - 1, decayed from after token j.
  Matrix faded_rows(const Tokens& x, const Matrix& rows, int64_t r, int64_t size, int64_t j) const {
    return {size, K_, [&](int64_t i, int64_t d) { return rows(r + i, d) * x.decay(j, r + i, d); }};
  }
  static Matrix faded_scores(const Tokens& x, const Matrix& D) {
    return {x.n(), x.n(),
            [&](int64_t i, int64_t j) { return j < i ? D(i, j) * x.decay(j, i, 0) : 0; }};
  }

  // rows_i . k_j, decayed from j to i, for j <= i.
  Matrix scores(const Tokens& x, const Matrix& rows) const {
    const int64_t n = x.n();
    if (!vector_) {
      const Matrix s = product(rows, transposed(x.k));
      return {n, n, [&](int64_t i, int64_t j) { return j <= i ? s(i, j) * x.decay(j, i, 0) : 0; }};
    }
    Matrix s(n, n);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t d = 0; d < K_; ++d) s(i, i) += rows(i, d) * x.k(i, d);
    for_pairs_within(n, [&](int64_t i, int64_t j, int64_t d) {
      s(i, j) += x.decay(j, i, d) * rows(i, d) * x.k(j, d);
    });
    for_blocks_apart(n, [&](int64_t i0, int64_t size, int64_t j0) {
      const Matrix pairs = product(faded_rows(x, rows, i0, size, j0 + kBlock - 1),
                                   transposed(part(x.k_down, j0, kBlock, 0, K_)));
      for_each(size, kBlock, [&](int64_t i, int64_t j) { s(i0 + i, j0 + j) = pairs(i, j); });
    });
    return s;
  }
  // to_i += sum over j < i of D_ij times k_j, decayed from j to i; and to_j += that over i > j with
  // rows_i.
  void add_of_columns(const Tokens& x, const Matrix& D, Matrix& to) const {
    const int64_t n = x.n();
    if (!vector_) return add(product(faded_scores(x, D), x.k), to);
    for_pairs_within(n, [&](int64_t i, int64_t j, int64_t d) {
      to(i, d) += D(i, j) * x.decay(j, i, d) * x.k(j, d);
    });
    for_blocks_apart(n, [&](int64_t i0, int64_t size, int64_t j0) {
      const Matrix sum = product(part(D, i0, size, j0, kBlock), part(x.k_down, j0, kBlock, 0, K_));
      for_each(size, K_, [&](int64_t i, int64_t d) {
        to(i0 + i, d) += sum(i, d) * x.decay(j0 + kBlock - 1, i0 + i, d);
      });
    });
  }
  void add_of_rows(const Tokens& x, const Matrix& D, const Matrix& rows, Matrix& to) const {
    const int64_t n = x.n();
    if (!vector_) return add(product(transposed(faded_scores(x, D)), rows), to);
    for_pairs_within(n, [&](int64_t i, int64_t j, int64_t d) {
      to(j, d) += D(i, j) * x.decay(j, i, d) * rows(i, d);
    });
    for_blocks_apart(n, [&](int64_t i0, int64_t size, int64_t j0) {
      const Matrix sum =
          product(transposed(part(D, i0, size, j0, kBlock)), faded_rows(x, rows, i0, size, i0 - 1));
      for_each(kBlock, K_, [&](int64_t j, int64_t d) {
        to(j0 + j, d) += sum(j, d) * x.decay(j0 + j, i0 - 1, d);
      });
    });
  }

  void token_gradients(const Piece& p, int64_t b, int64_t h, const Tokens& x, const Matrix& S,
                       const Matrix& dS, const Matrix& dO, const Matrix& U, const Matrix& R,
                       const Gradients& to) const {
    const int64_t n = x.n(), t = p.begin, hk = h / group_;
    Matrix dP = product(dO, transposed(U)), dL = product(R, transposed(U)), dM(n, n);
    for_each(n, n, [&](int64_t i, int64_t j) {
      dP(i, j) *= scale_, dL(i, j) *= -1, dM(i, j) = x.beta[i] * dL(i, j);
    });
    Matrix dQ = product(dO, transposed(S)), E = product(R, transposed(S)), W(n, K_);
    Matrix Z = product(U, transposed(dS));
    for_each(n, K_, [&](int64_t i, int64_t d) {
      dQ(i, d) *= scale_ * x.decay(-1, i, d);
      E(i, d) *= -x.decay(-1, i, d);
      Z(i, d) *= x.to_end(i, d);
    });
    add_of_columns(x, dP, dQ);
    add_of_columns(x, dL, E);
    add_of_rows(x, dP, x.q, W);
    add_of_rows(x, dM, x.k, W);

    if (to.g) gate_gradients(p, b, h, x, operands(S), operands(dS), dQ, E, W, Z, to.g);
    const Matrix erased = operands(R);
    for (int64_t i = 0; i < n; ++i) {
      double dbeta = 0;
      for (int64_t c = 0; c < V_; ++c) dbeta += erased(i, c) * x.v(i, c);
      for (int64_t d = 0; d < K_; ++d) {
        dbeta += x.k(i, d) * E(i, d);
        if (to.q) to.q(b, t + i, hk, d) += dQ(i, d) + dP(i, i) * x.k(i, d);
        if (to.k)
          to.k(b, t + i, hk, d) += x.beta[i] * E(i, d) + W(i, d) + Z(i, d) + dP(i, i) * x.q(i, d);
      }
      if (to.beta) to.beta(b, t + i, h) = dbeta;
    }
  }

  // Of what is read from a token on, within and through S, and of what was written before it and
  // lasts.
  void gate_gradients(const Piece& p, int64_t b, int64_t h, const Tokens& x, const Matrix& S,
                      const Matrix& dS, const Matrix& dQ, const Matrix& E, const Matrix& W,
                      const Matrix& Z, const View<double>& dg) const {
    const int64_t n = x.n(), t = p.begin;
    for (int64_t i = 0; i < n && !vector_; ++i) dg(b, t + i, h) = 0;
    const auto put = [&](int64_t i, int64_t d, double sum) {
      // Before a document's first token there is nothing to forget.
      if (p.first && i == 0 && !x_.initial_state) sum = 0;
      if (vector_)
        dg(b, t + i, h, d) = sum;
      else
        dg(b, t + i, h) += sum;
    };
    for (int64_t d = 0; d < K_; ++d) {
      double past = 0, future = 0;
      for (int64_t c = 0; c < V_; ++c) past += S(d, c) * dS(d, c);
      past *= x.decay(-1, n - 1, d);
      for (int64_t i = 0; i < n; ++i)
        future += x.q(i, d) * dQ(i, d) + x.k(i, d) * (x.beta[i] * E(i, d) - W(i, d));
      for (int64_t i = 0; i < n; ++i) {
        put(i, d, past + future);
        past += x.k(i, d) * Z(i, d);
        future -= x.q(i, d) * dQ(i, d) + x.k(i, d) * (x.beta[i] * E(i, d) - W(i, d));
      }
    }
  }

  Documents docs_;
  bool vector_;
  int64_t K_, V_, H_, group_;
  double scale_;
  Inputs<M, View<const double>> x_;
};

}  // namespace weft::kernels::delta_rule
