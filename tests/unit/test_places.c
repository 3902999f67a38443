/* Which ranks share a machine, and what a communicator makes of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/check.h"
#include "transport/places.h"

static places_host_t host(const char *node, const char *name)
{
    places_host_t found;
    places_host_find(&found, node);
    (void)snprintf(found.name, sizeof found.name, "%s", name);
    return found;
}

/* Nodes are numbered by their lowest ranks, local ranks in the order of ranks, whatever the order of the ranks is. */
static void nodes_are_numbered_in_order(void **state)
{
    const places_host_t hosts[6] = {host("b", "x"), host("a", "y"), host("b", "x"),
                                    host("c", "z"), host("a", "y"), host("b", "x")};
    const int32_t nodes[6] = {0, 1, 0, 2, 1, 0}, local[6] = {0, 0, 1, 0, 1, 2};
    places_map_t map;
    (void)state;
    ASSERT_OK(places_map_create(&map, 6));
    places_map_fill(&map, hosts, sizeof *hosts);
    assert_int_equal(map.nodes, 3);
    assert_memory_equal(map.node, nodes, sizeof nodes);
    assert_memory_equal(map.local, local, sizeof local);
    assert_string_equal(map.names[3], "z");
    const places_t all = places_of_all(&map, 4);
    assert_int_equal(all.size, 6);
    assert_int_equal(all.place, 4);
    assert_int_equal(all.ranks[5], 5);
    assert_int_equal(all.contributors, 6);
    places_map_destroy(&map);
}

/* The name that is given wins over the environment, which wins over what the machine says. */
static void who_names_the_node(void **state)
{
    places_host_t given, from_environment, found, again;
    (void)state;
    (void)unsetenv("GTOPK_NODE");
    places_host_find(&found, NULL);
    places_host_find(&again, NULL);
    assert_true(found.node == again.node);
    (void)setenv("GTOPK_NODE", "n1", 1);
    places_host_find(&from_environment, NULL);
    places_host_find(&given, "n2");
    places_host_find(&again, "n1");
    assert_true(from_environment.node != found.node);
    assert_true(given.node != from_environment.node);
    assert_true(again.node == from_environment.node);
    (void)setenv("GTOPK_NODE", "", 1);
    places_host_find(&again, NULL);
    assert_true(again.node == found.node);
    (void)unsetenv("GTOPK_NODE");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nodes_are_numbered_in_order),
        cmocka_unit_test(who_names_the_node),
    };
    return cmocka_run_group_tests_name("places", tests, NULL, NULL);
}
