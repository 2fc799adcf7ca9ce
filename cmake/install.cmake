# What `cmake --install` puts where: the program, the shared library with its header and its CMake
# package, the manual page, the shells' completions, recipes and pages.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

if(TARGET weft)
  # Made by the program from its own table of verbs.
  set(manual ${PROJECT_BINARY_DIR}/manual)
  file(MAKE_DIRECTORY ${manual})
  set(manual_files)
  foreach(entry man:weft.1 bash:weft zsh:_weft fish:weft.fish)
    string(REGEX MATCH "^[a-z]+" kind ${entry})
    string(REGEX REPLACE "^[a-z]+:" "" name ${entry})
    add_custom_command(OUTPUT ${manual}/${name} COMMAND weft manual ${kind} > ${manual}/${name}
      DEPENDS weft COMMENT "Writing ${name}")
    list(APPEND manual_files ${manual}/${name})
  endforeach()
  add_custom_target(weft_manual ALL DEPENDS ${manual_files})

  install(TARGETS weft)
  install(FILES ${manual}/weft.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
  install(FILES ${manual}/weft DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
  install(FILES ${manual}/_weft DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
  install(FILES ${manual}/weft.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
  install(DIRECTORY recipes DESTINATION ${CMAKE_INSTALL_DATADIR}/weft
    FILES_MATCHING PATTERN "*.toml")
  install(FILES README.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
  foreach(page recipes train data library)  # as they are named in each other
    install(FILES ${page}/README.md DESTINATION ${CMAKE_INSTALL_DOCDIR}/${page})
  endforeach()
endif()
if(TARGET weft_gloo)  # the program looks it up in ../lib/weft
  install(TARGETS weft_gloo LIBRARY DESTINATION lib/weft)
endif()

if(TARGET libweft)
  target_include_directories(libweft INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  set_target_properties(libweft PROPERTIES EXPORT_NAME Weft)
  install(TARGETS libweft EXPORT WeftTargets)
  install(FILES library/weft.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/weft)
  set(package ${CMAKE_INSTALL_LIBDIR}/cmake/Weft)
  install(EXPORT WeftTargets NAMESPACE Weft:: DESTINATION ${package})
  configure_package_config_file(cmake/WeftConfig.cmake.in ${PROJECT_BINARY_DIR}/WeftConfig.cmake
    INSTALL_DESTINATION ${package} PATH_VARS CMAKE_INSTALL_BINDIR)
  # Below version 1.0 every second number may change what a program sees.
  write_basic_package_version_file(${PROJECT_BINARY_DIR}/WeftConfigVersion.cmake
    COMPATIBILITY SameMinorVersion)
  install(FILES ${PROJECT_BINARY_DIR}/WeftConfig.cmake ${PROJECT_BINARY_DIR}/WeftConfigVersion.cmake
    DESTINATION ${package})
endif()

# All that an install copies: the tests are no part of it.
add_custom_target(installable)
foreach(made weft weft_manual weft_gloo libweft)
  if(TARGET ${made})
    add_dependencies(installable ${made})
  endif()
endforeach()
