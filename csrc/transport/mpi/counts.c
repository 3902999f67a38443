#include "transport/mpi/counts.h"

#include <limits.h>

/* Tests set a small limit. */
#ifndef MPI_MODULE_COUNT_MAX
#define MPI_MODULE_COUNT_MAX INT_MAX
#endif
#define TYPE_BLOCK ((size_t)1 << 20)

int counts_describe(size_t bytes, int *count, MPI_Datatype *type)
{
    *type = MPI_BYTE;
    *count = (int)bytes;
    if (bytes <= (size_t)MPI_MODULE_COUNT_MAX)
        return MPI_SUCCESS;
    MPI_Datatype block;
    int code = MPI_Type_contiguous((int)TYPE_BLOCK, MPI_BYTE, &block);
    if (code != MPI_SUCCESS)
        return code;
    const size_t blocks = bytes / TYPE_BLOCK;
    int lengths[2] = {(int)blocks, (int)(bytes % TYPE_BLOCK)};
    MPI_Aint places[2] = {0, (MPI_Aint)(blocks * TYPE_BLOCK)};
    MPI_Datatype types[2] = {block, MPI_BYTE};
    *count = 1;
    code = MPI_Type_create_struct(2, lengths, places, types, type);
    if (code == MPI_SUCCESS)
        code = MPI_Type_commit(type);
    (void)MPI_Type_free(&block);
    return code;
}

void counts_forget(MPI_Datatype *type)
{
    if (*type != MPI_BYTE)
        (void)MPI_Type_free(type);
}
