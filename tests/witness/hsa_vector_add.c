// A program against AMD's HSA runtime, as any application is: c = a + b on the first GPU, by two copies in, a dispatch and a
// copy out. Prints each step that worked.
//
//     hsa_vector_add [CODE_OBJECT]     without one it stops after the copies and compares what came back
//
// The kernel is `add`: (float *c, const float *a, const float *b), one work-item an element, 64 to a group.
#include <fcntl.h>
#include <hsa/hsa.h>
#include <hsa/hsa_ext_amd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { COUNT = 4096, GROUP = 64, BYTES = COUNT * sizeof(float) };

#define CHECK(call) check(call, #call)

static void check(hsa_status_t status, const char *what) {
  if (status == HSA_STATUS_SUCCESS) return;
  const char *text = "?";
  hsa_status_string(status, &text);
  printf("FAILED %s: %#x %s\n", what, status, text);
  exit(1);
}

static void step(const char *what) {
  printf("%s\n", what);
  fflush(stdout);
}

static hsa_status_t keep_agent(hsa_agent_t agent, void *kept) {
  hsa_device_type_t type;
  CHECK(hsa_agent_get_info(agent, HSA_AGENT_INFO_DEVICE, &type));
  hsa_agent_t *place = (hsa_agent_t *)kept + (type == HSA_DEVICE_TYPE_GPU);
  if (!place->handle) *place = agent;
  return HSA_STATUS_SUCCESS;
}

typedef struct {
  uint32_t flag;  // that the pool must have
  hsa_amd_memory_pool_t pool;
} Wanted;

static hsa_status_t keep_pool(hsa_amd_memory_pool_t pool, void *data) {
  Wanted *wanted = data;
  hsa_amd_segment_t segment;
  uint32_t flags;
  CHECK(hsa_amd_memory_pool_get_info(pool, HSA_AMD_MEMORY_POOL_INFO_SEGMENT, &segment));
  if (segment != HSA_AMD_SEGMENT_GLOBAL) return HSA_STATUS_SUCCESS;
  CHECK(hsa_amd_memory_pool_get_info(pool, HSA_AMD_MEMORY_POOL_INFO_GLOBAL_FLAGS, &flags));
  if (flags & wanted->flag && !wanted->pool.handle) wanted->pool = pool;
  return HSA_STATUS_SUCCESS;
}

static hsa_amd_memory_pool_t pool_of(hsa_agent_t agent, uint32_t flag) {
  Wanted wanted = {flag, {0}};
  CHECK(hsa_amd_agent_iterate_memory_pools(agent, keep_pool, &wanted));
  return wanted.pool;
}

static void *allocate(hsa_amd_memory_pool_t pool, size_t bytes, int count, const hsa_agent_t *agents) {
  void *at = NULL;
  CHECK(hsa_amd_memory_pool_allocate(pool, bytes, 0, &at));
  CHECK(hsa_amd_agents_allow_access(count, agents, NULL, at));
  return at;
}

static void await(hsa_signal_t signal) {
  if (hsa_signal_wait_scacquire(signal, HSA_SIGNAL_CONDITION_LT, 1, UINT64_MAX, HSA_WAIT_STATE_BLOCKED) == 0) return;
  printf("FAILED: a signal says %ld\n", (long)hsa_signal_load_scacquire(signal));
  exit(1);
}

static void copy(void *to, hsa_agent_t there, const void *from, hsa_agent_t here) {
  hsa_signal_t done;
  CHECK(hsa_signal_create(1, 0, NULL, &done));
  CHECK(hsa_amd_memory_async_copy(to, there, from, here, BYTES, 0, NULL, done));
  await(done);
  CHECK(hsa_signal_destroy(done));
}

static void on_error(hsa_status_t status, hsa_queue_t *queue, void *data) {
  (void)queue, (void)data;
  check(status, "the queue");
}

static void dispatch(hsa_queue_t *queue, uint64_t kernel, uint32_t group_bytes, uint32_t private_bytes, void *kernarg) {
  hsa_signal_t done;
  CHECK(hsa_signal_create(1, 0, NULL, &done));
  uint64_t number = hsa_queue_add_write_index_relaxed(queue, 1);
  hsa_kernel_dispatch_packet_t *packet = (hsa_kernel_dispatch_packet_t *)queue->base_address + number % queue->size;
  memset((char *)packet + 4, 0, sizeof *packet - 4);
  packet->workgroup_size_x = GROUP;
  packet->workgroup_size_y = packet->workgroup_size_z = 1;
  packet->grid_size_x = COUNT;
  packet->grid_size_y = packet->grid_size_z = 1;
  packet->private_segment_size = private_bytes;
  packet->group_segment_size = group_bytes;
  packet->kernel_object = kernel;
  packet->kernarg_address = kernarg;
  packet->completion_signal = done;
  uint32_t header = HSA_PACKET_TYPE_KERNEL_DISPATCH << HSA_PACKET_HEADER_TYPE |
                    HSA_FENCE_SCOPE_SYSTEM << HSA_PACKET_HEADER_SCACQUIRE_FENCE_SCOPE |
                    HSA_FENCE_SCOPE_SYSTEM << HSA_PACKET_HEADER_SCRELEASE_FENCE_SCOPE;
  __atomic_store_n((uint32_t *)packet, header | 1 << HSA_KERNEL_DISPATCH_PACKET_SETUP_DIMENSIONS << 16, __ATOMIC_RELEASE);
  hsa_signal_store_screlease(queue->doorbell_signal, number);
  await(done);
  CHECK(hsa_signal_destroy(done));
}

static hsa_executable_t load(hsa_agent_t gpu, const char *path) {
  hsa_code_object_reader_t reader;
  hsa_executable_t executable;
  int file = open(path, O_RDONLY);
  CHECK(hsa_code_object_reader_create_from_file(file, &reader));
  CHECK(hsa_executable_create_alt(HSA_PROFILE_BASE, HSA_DEFAULT_FLOAT_ROUNDING_MODE_DEFAULT, NULL, &executable));
  CHECK(hsa_executable_load_agent_code_object(executable, gpu, reader, NULL, NULL));
  CHECK(hsa_executable_freeze(executable, NULL));
  close(file);
  return executable;
}

static int compare(const float *got, const float *wanted, const char *what) {
  for (int i = 0; i < COUNT; i++) {
    if (got[i] == wanted[i]) continue;
    printf("FAILED: %s[%d] is %g, not %g\n", what, i, got[i], wanted[i]);
    return 1;
  }
  printf("%s is right\n", what);
  return 0;
}

int main(int argc, char **argv) {
  hsa_agent_t agents[2] = {{0}, {0}};  // CPU, GPU
  static float a[COUNT], b[COUNT], sum[COUNT];
  char name[64];
  CHECK(hsa_init());
  CHECK(hsa_iterate_agents(keep_agent, agents));
  hsa_agent_t cpu = agents[0], gpu = agents[1];
  if (!gpu.handle) return puts("FAILED: no GPU"), 1;
  CHECK(hsa_agent_get_info(gpu, HSA_AGENT_INFO_NAME, name));
  step(name);
  hsa_amd_memory_pool_t system = pool_of(cpu, HSA_AMD_MEMORY_POOL_GLOBAL_FLAG_FINE_GRAINED);
  hsa_amd_memory_pool_t kernargs = pool_of(cpu, HSA_AMD_MEMORY_POOL_GLOBAL_FLAG_KERNARG_INIT);
  hsa_amd_memory_pool_t local = pool_of(gpu, HSA_AMD_MEMORY_POOL_GLOBAL_FLAG_COARSE_GRAINED);
  float *staging = allocate(system, BYTES, 1, &gpu), *back = allocate(system, BYTES, 1, &gpu);
  float *device[3];
  for (int i = 0; i < 3; i++) device[i] = allocate(local, BYTES, 1, &gpu);
  step("allocated");
  for (int i = 0; i < COUNT; i++) a[i] = i, b[i] = 0.5f * i, sum[i] = a[i] + b[i];
  memcpy(staging, a, BYTES);
  copy(device[1], gpu, staging, cpu);
  memcpy(staging, b, BYTES);
  copy(device[2], gpu, staging, cpu);
  copy(device[0], gpu, device[1], gpu);
  copy(back, cpu, device[0], gpu);
  if (compare(back, a, "copy")) return 1;
  hsa_queue_t *queue;
  CHECK(hsa_queue_create(gpu, 1024, HSA_QUEUE_TYPE_SINGLE, on_error, NULL, UINT32_MAX, UINT32_MAX, &queue));
  step("queue");
  if (argc > 1) {
    hsa_executable_t executable = load(gpu, argv[1]);
    hsa_executable_symbol_t symbol;
    uint64_t kernel;
    uint32_t group_bytes, private_bytes, kernarg_bytes;
    CHECK(hsa_executable_get_symbol_by_name(executable, "add.kd", &gpu, &symbol));
    CHECK(hsa_executable_symbol_get_info(symbol, HSA_EXECUTABLE_SYMBOL_INFO_KERNEL_OBJECT, &kernel));
    CHECK(hsa_executable_symbol_get_info(symbol, HSA_EXECUTABLE_SYMBOL_INFO_KERNEL_GROUP_SEGMENT_SIZE, &group_bytes));
    CHECK(hsa_executable_symbol_get_info(symbol, HSA_EXECUTABLE_SYMBOL_INFO_KERNEL_PRIVATE_SEGMENT_SIZE, &private_bytes));
    CHECK(hsa_executable_symbol_get_info(symbol, HSA_EXECUTABLE_SYMBOL_INFO_KERNEL_KERNARG_SEGMENT_SIZE, &kernarg_bytes));
    step("loaded");
    void *kernarg = allocate(kernargs, kernarg_bytes < 64 ? 64 : kernarg_bytes, 1, &gpu);
    memcpy(kernarg, device, sizeof device);
    dispatch(queue, kernel, group_bytes, private_bytes, kernarg);
    step("dispatched");
    copy(back, cpu, device[0], gpu);
    if (compare(back, sum, "sum")) return 1;
    CHECK(hsa_executable_destroy(executable));
  }
  CHECK(hsa_queue_destroy(queue));
  CHECK(hsa_shut_down());
  step("done");
  return 0;
}
