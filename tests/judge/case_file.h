// A case's file read and answered through the C API of HDF5, for the programs in C++ and CUDA of
// this folder. Numbers are doubles in memory; HDF5 rounds them to the type of the case's file, bf16
// too.
#pragma once

#include <hdf5.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace answers {

inline hid_t checked(hid_t id, const std::string& what) {
  if (id >= 0) return id;
  std::fprintf(stderr, "%s: cannot be opened or made\n", what.c_str());
  std::exit(2);
}

struct Matrix {
  hsize_t rows = 0, columns = 0;
  std::vector<double> x;
};

class CaseFile {
 public:
  // `folder` is that of `weft cases`, `name` a file in it.
  CaseFile(const std::string& folder, const std::string& name)
      : in_(checked(H5Fopen((folder + "/" + name).c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), name)),
        out_(checked(H5Fcreate((folder + "/results/" + name).c_str(), H5F_ACC_TRUNC, H5P_DEFAULT,
                               H5P_DEFAULT),
                     "results/" + name)) {}
  ~CaseFile() {
    H5Fclose(in_);
    H5Fclose(out_);
  }
  CaseFile(const CaseFile&) = delete;
  CaseFile& operator=(const CaseFile&) = delete;

  Matrix matrix(const char* name) const {
    const hid_t set = checked(H5Dopen2(in_, name, H5P_DEFAULT), name), space = H5Dget_space(set);
    Matrix m;
    hsize_t sizes[2] = {0, 0};
    H5Sget_simple_extent_dims(space, sizes, nullptr);
    m.rows = sizes[0];
    m.columns = sizes[1];
    m.x.resize(m.rows * m.columns);
    if (!m.x.empty()) H5Dread(set, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, m.x.data());
    H5Sclose(space);
    H5Dclose(set);
    return m;
  }

  double option(const char* name) const {
    const hid_t at = checked(H5Aopen_by_name(in_, "options", name, H5P_DEFAULT, H5P_DEFAULT), name);
    double value = 0;
    H5Aread(at, H5T_NATIVE_DOUBLE, &value);
    H5Aclose(at);
    return value;
  }

  // Writes to "outputs/y" or the like, in the type that `like` has in the case's file.
  void write(const char* name, const Matrix& m, const char* like) const {
    const hsize_t sizes[2] = {m.rows, m.columns};
    const hid_t model = checked(H5Dopen2(in_, like, H5P_DEFAULT), like), type = H5Dget_type(model);
    const hid_t space = H5Screate_simple(2, sizes, nullptr), groups = H5Pcreate(H5P_LINK_CREATE);
    H5Pset_create_intermediate_group(groups, 1);
    const hid_t set =
        checked(H5Dcreate2(out_, name, type, space, groups, H5P_DEFAULT, H5P_DEFAULT), name);
    if (!m.x.empty()) H5Dwrite(set, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, m.x.data());
    H5Dclose(set);
    H5Pclose(groups);
    H5Sclose(space);
    H5Tclose(type);
    H5Dclose(model);
  }

 private:
  hid_t in_, out_;
};

}  // namespace answers
