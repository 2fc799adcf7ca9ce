#include "core/hdf5_native.h"

#include "tests/catch.h"
#include "tests/folder.h"

using namespace weft;

TEST_CASE("hdf5 native: bf16 lies in a file as the bfloat16 that HDF5 2.0 defines") {
  const tests::Folder f;
  Hdf5Writer writer(f / "a.h5");
  const bf16 third(1.0f / 3);
  writer.tensor("x", Dtype::bf16, {1}, &third);
  writer.commit();
  const h5::Guard guard;
  const h5::Id file(H5Fopen((f / "a.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
  REQUIRE(file.valid());
  const h5::Id dataset(H5Dopen2(file, "x", H5P_DEFAULT), H5Dclose);
  const h5::Id type(H5Dget_type(dataset), H5Tclose);
  REQUIRE(type.valid());
  CHECK(H5Tget_class(type) == H5T_FLOAT);
  CHECK(H5Tget_order(type) == H5T_ORDER_LE);
  CHECK(H5Tget_size(type) == 2);
  CHECK(H5Tget_precision(type) == 16);
  CHECK(H5Tget_offset(type) == 0);
  size_t sign = 0, exponent = 0, exponent_bits = 0, mantissa = 1, mantissa_bits = 0;
  CHECK(H5Tget_fields(type, &sign, &exponent, &exponent_bits, &mantissa, &mantissa_bits) >= 0);
  CHECK(sign == 15);
  CHECK(exponent == 7);
  CHECK(exponent_bits == 8);
  CHECK(mantissa == 0);
  CHECK(mantissa_bits == 7);
  CHECK(H5Tget_ebias(type) == 127);
  CHECK(H5Tget_norm(type) == H5T_NORM_IMPLIED);
  CHECK(H5Tget_inpad(type) == H5T_PAD_ZERO);
  H5T_pad_t low = H5T_PAD_ERROR, high = H5T_PAD_ERROR;
  CHECK(H5Tget_pad(type, &low, &high) >= 0);
  CHECK((low == H5T_PAD_ZERO && high == H5T_PAD_ZERO));
  // HDF5's own conversion reads the number.
  double value = 0;
  CHECK(H5Dread(dataset, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, &value) >= 0);
  CHECK(value == static_cast<double>(static_cast<float>(third)));
}
