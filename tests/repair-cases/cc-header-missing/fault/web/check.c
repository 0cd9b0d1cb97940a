#include <sys/capability.h>
int main(void) { return sizeof(cap_t) ? 0 : 1; }
