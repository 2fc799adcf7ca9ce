#!/usr/bin/env python3
"""Checks the Python package against the shared library, with what this Python has.

    WEFT_LIBRARY=build/release/libweft.so python3 tests/library/check_python.py

The tables and the refusals need Python alone, the rest numpy and torch. The last line says what was
left out for want of a package.
"""
import gc
import importlib
import pathlib
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "library" / "python"))
import weft  # noqa: E402


def have(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


np, torch = have("numpy"), have("torch")


def refused(call, *words):
    """The call raises weft.Error with these words."""
    try:
        call()
    except weft.Error as error:
        missing = [word for word in words if word not in str(error)]
        assert not missing, f"{error!s} lacks {missing}"
        return
    raise AssertionError("nothing was refused")


class Tables(unittest.TestCase):
    def test_every_operation_has_a_function_whose_help_is_its_table(self):
        self.assertIn("delta", weft.operations())
        self.assertEqual(dir(weft.ops), sorted(weft.operations()))
        for name in weft.operations():
            function = getattr(weft.ops, name)
            self.assertEqual(function.__doc__, weft.describe(name))
            self.assertIn("Outputs", function.__doc__)
            self.assertNotIn("form", [row.name for row in weft._library.table(name)])
        self.assertIn("beta            [B, T, H]", weft.ops.delta.__doc__)
        self.assertRaises(AttributeError, lambda: weft.ops.mamul)

    def test_names_that_are_not_known_are_told_with_the_nearest(self):
        refused(lambda: weft.op("mamul"), 'did you mean "matmul"')
        refused(lambda: weft.op("delta", betta=None), "did you mean 'beta'")

    def test_what_is_no_tensor_is_refused_by_its_type(self):
        refused(lambda: weft.op("matmul", x=[1.0], w=[1.0]), "matmul: x is list")
        refused(lambda: weft.op("l2_norm", eps=[1]), "l2_norm: eps is list")
        refused(lambda: weft.op("matmul"), "input x [R, I] is missing")


@unittest.skipUnless(np, "no numpy")
class Numpy(unittest.TestCase):
    def test_numbers_are_those_of_the_definition(self):
        rng = np.random.default_rng(1)
        x, w, bias = rng.normal(size=(5, 3)), rng.normal(size=(4, 3)), rng.normal(size=4)
        y = weft.op("matmul", x=x, w=w, bias=bias).y
        np.testing.assert_allclose(y, x @ w.T + bias, rtol=1e-12)
        y += 1  # the array owns its memory and may be written
        dy = rng.normal(size=(5, 4))
        g = weft.grad("matmul", {"y": dy}, x=x, w=w, bias=bias)
        np.testing.assert_allclose(g.dx, dy @ w, rtol=1e-12)
        np.testing.assert_allclose(g.dbias, dy.sum(0), rtol=1e-12)
        self.assertEqual(weft.op("matmul", x=x.astype("f4"), w=w.astype("f4")).y.dtype, "f4")

    def test_any_layout_of_an_array_is_read_as_numpy_reads_it(self):
        rng = np.random.default_rng(2)
        x, w = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))
        fields = np.zeros(5, dtype=[("tag", "i2"), ("x", "f8", 3)])
        fields["x"] = x
        for same in (np.asfortranarray(x), x[::-1][::-1], np.repeat(x, 2, 1)[:, ::2],
                     x.astype(">f8"), fields["x"]):
            np.testing.assert_array_equal(weft.op("matmul", x=same, w=w).y,
                                          weft.op("matmul", x=x, w=w).y)
        reverse = x[::-1, ::-1]
        np.testing.assert_array_equal(weft.op("matmul", x=reverse, w=w).y,
                                      weft.op("matmul", x=reverse.copy(), w=w).y)
        self.assertEqual(weft.op("matmul", x=x[:0], w=w).y.shape, (0, 4))

    def test_results_outlive_the_call_and_are_let_go(self):
        x = np.arange(12.0).reshape(4, 3)
        kept = [weft.op("matmul", x=x, w=x).y for _ in range(50)]
        gc.collect()
        for y in kept:
            np.testing.assert_array_equal(y, x @ x.T)

    def test_a_whole_number_of_any_width_is_an_index(self):
        weight = np.arange(6.0).reshape(3, 2)
        for dtype in ("i4", "i8", "u2", "i1"):
            y = weft.op("embedding", weight=weight, ids=np.array([2, 0], dtype)).y
            np.testing.assert_array_equal(y, weight[[2, 0]])
        refused(lambda: weft.op("embedding", weight=weight, ids=np.array([2**40])), "32 bits")
        refused(lambda: weft.op("embedding", weight=weight, ids=np.array([1.5])), "ids")
        refused(lambda: weft.op("embedding", weight=weight, ids=np.array([3])), "embedding")

    def test_outputs_that_settings_leave_out_are_none(self):
        rng = np.random.default_rng(3)
        q, k, v = (rng.normal(size=(1, 7, 2, 4)) for _ in range(3))
        y = weft.op("linear", q=q, k=k, v=v, return_state=False)
        self.assertIsNone(y.final_state)
        y = weft.op("linear", q=q, k=k, v=v, scale=np.float64(1), form="recurrent")
        np.testing.assert_allclose(y.final_state, np.einsum("bthk,bthv->bhkv", k, v), rtol=1e-12)
        chosen = weft.op("router", logits=rng.normal(size=(3, 4)), top_k=2)
        self.assertEqual(chosen.index.shape, (3, 2))

    def test_dtypes_and_shapes_that_do_not_fit_are_refused(self):
        x = np.ones((2, 3))
        refused(lambda: weft.op("matmul", x=x.astype("f2"), w=x), "float16; expected float64")
        refused(lambda: weft.op("matmul", x=x.astype("c16"), w=x), "matmul: x")
        refused(lambda: weft.op("matmul", x=np.array(["a"]), w=x), "matmul: x")
        refused(lambda: weft.op("matmul", x=x, w=x.astype("f4")), "w is f32, expected f64")
        refused(lambda: weft.op("matmul", x=x, w=x[:, :2]), "matmul")
        refused(lambda: weft.grad("matmul", {"z": x}, x=x, w=x), "unknown output 'z'")
        refused(lambda: weft.grad("matmul", {"y": x}, x=x, w=x), "dy has shape [2, 3]")


@unittest.skipUnless(torch, "no torch")
class Torch(unittest.TestCase):
    def inputs(self, dtype="float64"):
        g = torch.Generator().manual_seed(4)

        def made(*shape):
            return torch.randn(*shape, generator=g, dtype=getattr(torch, dtype))

        q, k, v = made(1, 9, 2, 4), made(1, 9, 2, 4), made(1, 9, 2, 5)
        k = torch.nn.functional.normalize(k, dim=-1)
        return dict(q=q, k=k, v=v, beta=torch.sigmoid(made(1, 9, 2)), g=-made(1, 9, 2).abs())

    def test_gradients_are_those_of_differences(self):
        x = self.inputs()
        names = list(x)
        leaves = [x[name].clone().requires_grad_() for name in names]

        def outputs(*values):
            return tuple(weft.op("delta", **dict(zip(names, values))))

        self.assertTrue(torch.autograd.gradcheck(outputs, leaves))

    def test_only_what_requires_a_gradient_gets_one(self):
        x = self.inputs()
        x["v"].requires_grad_()
        y = weft.op("delta", **x)
        y.o.sum().backward()
        self.assertIsNotNone(x["v"].grad)
        self.assertIsNone(x["q"].grad)
        self.assertFalse(weft.op("delta", **self.inputs()).o.requires_grad)
        with torch.no_grad():
            self.assertFalse(weft.op("delta", **x).o.requires_grad)

    def test_an_index_that_is_written_carries_no_gradient(self):
        logits = torch.randn(3, 4, dtype=torch.float64).requires_grad_()
        y = weft.op("router", logits=logits, top_k=2)
        self.assertEqual(y.index.dtype, torch.int32)
        (y.weight[:, 0].sum() + y.balance.sum()).backward()
        self.assertEqual(logits.grad.shape, logits.shape)

    def test_bfloat16_and_views_work(self):
        x = self.inputs("bfloat16")
        y = weft.op("delta", **x).o
        self.assertEqual(y.dtype, torch.bfloat16)
        a = torch.randn(3, 5, dtype=torch.float64).t().requires_grad_()
        w = torch.randn(2, 3, dtype=torch.float64)
        weft.op("matmul", x=a, w=w).y.sum().backward()
        torch.testing.assert_close(a.grad, w.sum(0).expand(5, 3))

    def test_an_input_changed_before_backward_is_told(self):
        x = torch.randn(2, 3, dtype=torch.float64)
        w = torch.randn(4, 3, dtype=torch.float64).requires_grad_()
        y = weft.op("matmul", x=x, w=w).y
        x.add_(1)
        with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation"):
            y.sum().backward()

    def test_what_is_no_dense_tensor_of_a_known_device_is_refused(self):
        x = torch.ones(2, 3)
        refused(lambda: weft.op("matmul", x=x.to_sparse(), w=x), "layout")
        refused(lambda: weft.op("matmul", x=x.to("meta"), w=x), "meta")
        refused(lambda: weft.op("matmul", x=x.half(), w=x), "float16; expected float64")
        if np:
            refused(lambda: weft.op("matmul", x=x, w=np.ones((2, 3), "f4")), "expected one kind")


if __name__ == "__main__":
    ran = unittest.main(exit=False).result
    lacking = [name for name, module in (("numpy", np), ("torch", torch)) if not module]
    print("checked", "without " + " and ".join(lacking) if lacking else "with numpy and torch")
    sys.exit(0 if ran.wasSuccessful() else 1)
