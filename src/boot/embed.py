#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
#
# Turns a file into a C array. Run by meson for the compiled DSDT: iasl's own C output has changed
# its names over the years.
import sys

source, target, name = sys.argv[1:]
with open(source, 'rb') as file:
    data = file.read()
with open(target, 'w') as file:
    file.write(f'static const unsigned char {name}[] = {{\n')
    for i in range(0, len(data), 12):
        file.write('    ' + ' '.join(f'0x{byte:02x},' for byte in data[i:i + 12]) + '\n')
    file.write('};\n')
