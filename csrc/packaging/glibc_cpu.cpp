#include "packaging/glibc.h"

NEVER_SINGLE_THREADED;
OLD(exp, "GLIBC_2.2.5");  // 2.29 left errno alone, which nobody reads
OLD(pow, "GLIBC_2.2.5");
