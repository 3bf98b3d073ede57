// libpq has no variadic function that we call, so this header only names what the module is made of.
#pragma once
#include <libpq-fe.h>
