#ifndef EK_EXPORT_H
#define EK_EXPORT_H
#ifdef _WIN32
#define EK_API __declspec(dllexport)
#else
#define EK_API __attribute__((visibility("default")))
#endif
#endif
