# The CUDA kernels, in a library of their own that loads on a machine without a GPU: CUDA's runtime is
# linked in and hidden. CMake's own support of CUDA does not find the compiler in the PyPI packages.

set(CUDA_SOURCES deformable_conv deformable_conv_grad kernels sample)
set(CUDA_FLAGS -std=c++17 -O3 -I${ROOT} -Xcompiler=-fPIC,-fvisibility=hidden)
foreach(architecture 75 80 86 89 90)
  list(APPEND CUDA_FLAGS -gencode=arch=compute_${architecture},code=sm_${architecture})
endforeach()
list(APPEND CUDA_FLAGS -gencode=arch=compute_90,code=compute_90)  # PTX, for later GPUs

file(GLOB CUDA_HEADERS ${CMAKE_CURRENT_SOURCE_DIR}/*.h ${CMAKE_CURRENT_SOURCE_DIR}/cuda/*.h)
foreach(source ${CUDA_SOURCES})
  add_custom_command(
    OUTPUT ${source}.o
    COMMAND ${NVCC} ${CUDA_FLAGS} -c ${CMAKE_CURRENT_SOURCE_DIR}/cuda/${source}.cu -o ${source}.o
    DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cuda/${source}.cu ${CUDA_HEADERS}
    COMMENT "Compiling ${source}.cu for five architectures"
    VERBATIM)
  list(APPEND CUDA_OBJECTS ${source}.o)
endforeach()

get_filename_component(NVCC_FOLDER ${NVCC} DIRECTORY)  # PyPI's nvcc does not look beside it
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/cuda.map "{ global: TfDeformCudaKernels; local: *; };\n")
add_custom_command(
  OUTPUT tf_deform_kernels_cuda.so
  COMMAND ${NVCC} -shared -cudart=static -Xlinker=--version-script=cuda.map,--no-undefined
          -L${NVCC_FOLDER}/../lib ${CUDA_OBJECTS} -o tf_deform_kernels_cuda.so
  DEPENDS ${CUDA_OBJECTS}
  VERBATIM)
add_custom_target(tf_deform_kernels_cuda ALL DEPENDS tf_deform_kernels_cuda.so)
