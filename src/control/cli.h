/* SPDX-License-Identifier: Apache-2.0
 *
 * The subcommands that talk to running guests. Called by main.c; each returns the program's exit
 * status and has printed its errors.
 */
#pragma once

#define EXIT_USAGE 2

/** "baton update NAME [options]": replaces the process under a guest. @param argv after "update" */
int cli_update(int argc, char **argv);

/** "baton list": running guests, one a line. @param argv after "list" */
int cli_list(int argc, char **argv);
